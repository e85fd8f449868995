"""Episodes as arrays, whatever they record and wherever they come from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episodes:
    """Episodes end to end.

    `arrays` maps a name to (N, ...): images are uint8 (N, Y, X, 3) RGB, everything else is float32 in the recorder's
    units (a conversion keeps every type). `episode_ends` int64 (E,) holds one past the last frame of each episode, as
    the reference implementation stores it.
    """

    arrays: dict[str, np.ndarray]
    episode_ends: np.ndarray

    def __len__(self) -> int:
        return int(self.episode_ends[-1])

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    @property
    def episode_starts(self) -> np.ndarray:
        return np.concatenate([[0], self.episode_ends[:-1]])

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of one episode."""
        rows = slice(self.episode_starts[number], self.episode_ends[number])
        return {name: array[rows] for name, array in self.arrays.items()}

    def sha256(self, *names: str) -> str:
        """Digest of the ends and the arrays `names` (default: all). It does not depend on how they are stored."""
        digest = hashlib.sha256(self.episode_ends.tobytes())
        for name in sorted(names or self.arrays):
            digest.update(name.encode() + np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()


def join_ends(ends: Sequence[np.ndarray]) -> np.ndarray:
    """The episode ends of several data sets, one after the other."""
    offsets = np.cumsum([0, *(int(one[-1]) for one in ends[:-1])])
    return np.concatenate([one + offset for one, offset in zip(ends, offsets, strict=True)])

"""Everything a training run needs of a data set, whatever it records."""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from dp.data.episodes import Episodes
from dp.data.formats import open_store
from dp.data.reading import executed_actions, key_of
from dp.data.summary import describe
from dp.data.windows import Split, WindowDataset, window_table
from dp.modalities import CONSTANT_RANGE, Normalizer, Spec

log = logging.getLogger(__name__)

REACHED = 1.01
"""Largest normalised action that clipping to [-1, 1] leaves nearly as it is."""


class Demonstrations:
    """Episodes, normalised once and split.

    Args:
        episodes: arrays named as `obs` and "action". They may hold every episode `n_copies` times: all recorded
            episodes first, then all their images under a symmetry of the task.
        obs, action: what `shape_meta` declares.
        split: numbers of recorded episodes.
        paths: where the episodes come from.
        sha256: digest of what was recorded, without images.
        seeds: from whose initial state each recorded episode begins, (E,), -1 where that is not known. None: nowhere.

    `train_episodes` numbers what to train on, copies included.
    """

    def __init__(
        self,
        episodes: Episodes,
        obs: Mapping[str, Spec],
        action: Spec,
        split: Split,
        paths: Sequence[Path],
        sha256: str,
        n_copies: int = 1,
        seeds: np.ndarray | None = None,
    ) -> None:
        self.episodes, self.split, self.paths, self.sha256 = episodes, split, list(paths), sha256
        self.n_episodes = episodes.n_episodes // n_copies
        self._seeds = np.full(self.n_episodes, -1) if seeds is None else seeds
        self.train_episodes = np.concatenate([split.train + copy * self.n_episodes for copy in range(n_copies)])
        arrays = {name: _tensor(array) for name, array in episodes.arrays.items()}
        self.normalize_with(Normalizer.fit({**obs, "action": action}, arrays))  # on all episodes, as the paper does
        for doubt in self.doubts():
            log.warning("WARNING: %s: %s", " + ".join(map(str, self.paths)), doubt)

    def normalize_with(self, normalizer: Normalizer) -> None:
        """Maps the data with `normalizer`, for example with the statistics of the data that a policy was trained on.

        Warns where values lie outside the range that a policy which clips its samples can reach.
        """
        self.normalizer = normalizer = copy.deepcopy(normalizer).cpu()  # of a policy that may lie on a GPU
        arrays = {name: _tensor(array) for name, array in self.episodes.arrays.items()}
        specs = {name: spec for name, spec in normalizer.specs.items() if name != "action"}
        self._obs = {
            name: arrays[name] if spec.type == "rgb" else normalizer.normalize(name, arrays[name])
            for name, spec in specs.items()
        }
        self._action = normalizer.normalize("action", arrays["action"])
        largest = float(self._action.abs().max())
        if normalizer.clamps("action") and largest > REACHED:
            log.warning(
                "actions reach %.2f in the policy's units, but its samples are clipped to [-1, 1]: these data lie "
                "outside the range it was trained with. Train from the start instead, without init_from", largest,
            )  # fmt: skip

    def windows(self, episodes: np.ndarray, horizon: int, n_obs_steps: int, n_action_steps: int) -> WindowDataset:
        """The windows of `episodes`. Raises ValueError if all of them are too short for one."""
        table = window_table(self.episodes, episodes, horizon, n_obs_steps, n_action_steps)
        if len(episodes) and not len(table):
            needed = f"a window of horizon={horizon}"
            raise ValueError(f"none of {len(episodes)} episodes is long enough for {needed}: set a smaller horizon")
        return WindowDataset(self._obs, self._action, torch.from_numpy(table), n_obs_steps)

    @property
    def train_seeds(self) -> Sequence[int]:
        """Seeds from which the environment starts as training episodes do, in their order."""
        seeds = self._seeds[self.split.train]
        return seeds[seeds >= 0].tolist()

    def executed_actions(self) -> dict[int, Float[np.ndarray, "T Da"]]:
        """Seed -> the actions that were executed from its initial state, raw. Those recorded may lack their noise."""
        known = np.flatnonzero(self._seeds >= 0).tolist()
        if not known:
            return {}
        actions = [executed_actions(open_store(path), self.normalizer.specs["action"]) for path in self.paths]
        of_episodes = np.split(np.concatenate(actions), self.episodes.episode_ends[: self.n_episodes - 1])
        return {int(self._seeds[n]): of_episodes[n] for n in known}

    def doubts(self) -> Iterator[str]:
        """Yields a sentence for each property of the data that is probably a mistake."""
        for name, spec in self.normalizer.specs.items():
            if spec.type == "low_dim":
                yield from _doubts(name, spec, self.episodes.arrays[name])

    def describe(self) -> Iterator[str]:
        """Lines for people. Raises ValueError, after the last line, if something is wrong with the data."""
        for path in self.paths:
            yield from describe(open_store(path))

    def save_pictures(self, folder: Path) -> Iterator[str]:
        """Writes pictures of the episodes to `folder`. Yields lines that say which."""
        yield f"no pictures: the task of {', '.join(map(str, self.paths))} does not draw any"


def check_sha256(expected: str | None, found: str, paths: Sequence[Path]) -> None:
    """Raises ValueError if the data are not the expected ones."""
    if expected not in (None, found):
        raise ValueError(
            f"dataset.sha256={expected}, but {', '.join(map(str, paths))} has {found}: these are other demonstrations. "
            "Set dataset.path=PATH to the original data, or dataset.sha256=null to accept these"
        )


def _doubts(name: str, spec: Spec, array: np.ndarray) -> Iterator[str]:
    low, high = array.min(0), array.max(0)
    if isinstance(spec.normalize, Mapping):
        if (low < spec.normalize["low"]).any() or (high > spec.normalize["high"]).any():
            yield (
                f"{name} ranges from {low.min():g} to {high.max():g}, outside {key_of(name)}.normalize="
                f"{{low: {spec.normalize['low']}, high: {spec.normalize['high']}}}: set limits that include all values"
            )
        return
    tiny = (high > low) & (high - low < CONSTANT_RANGE)
    if tiny.any() and spec.normalize != "none":
        yield (
            f"{name} varies by {(high - low)[tiny].max():g} in {tiny.sum()} of its {tiny.size} dimensions, which "
            f"counts as constant below {CONSTANT_RANGE:g}: use smaller units if the difference matters"
        )


def _tensor(array: np.ndarray) -> torch.Tensor:
    with warnings.catch_warnings():  # torch cannot mark tensors as read-only; nothing here writes to them
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)

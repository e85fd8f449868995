"""An episode, kept frame by frame as a data set stores it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dp.rollouts.env import Env


@runtime_checkable
class Demonstration(Protocol):
    """One recorded episode: frame t is what was seen before action t was executed."""

    @property
    def seed(self) -> int: ...

    @property
    def success(self) -> bool: ...

    def __len__(self) -> int: ...

    def frames(self) -> Mapping[str, np.ndarray]:
        """Array of the store under data/ -> its rows (T, ...)."""

    def facts(self) -> Mapping[str, Any]:
        """Array of the store under meta/ -> what it says of this episode."""

    def final(self) -> Mapping[str, float]:
        """Named quantities of the environment after the last action."""


@runtime_checkable
class Recording(Protocol):
    """An episode that is being recorded."""

    def step(self, action: np.ndarray) -> bool:
        """Executes `action`. Returns whether the task is solved now."""
        ...

    def demonstration(self) -> Demonstration:
        """Everything so far."""
        ...


@runtime_checkable
class Collector(Protocol):
    """Makes demonstrations: the same one for the same seed, in whichever process."""

    def __call__(self, seed: int) -> Demonstration | None:
        """From the initial state of `seed`; None where nothing worth keeping came about.

        May raise `Finished`. With an attribute `in_this_process` that is true it is never sent to worker processes.
        """
        ...


class Finished(Exception):
    """The demonstrator will make no more."""


@dataclass(frozen=True)
class RecordedEpisode:
    """Observations by name, each (T, ...), actions (T, Da), and how it ended."""

    seed: int
    obs: dict[str, np.ndarray]
    action: Float[np.ndarray, "T Da"]
    success: bool
    info: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

    def frames(self) -> Mapping[str, np.ndarray]:
        return {**self.obs, "action": self.action}

    def facts(self) -> Mapping[str, Any]:
        return {"seed": self.seed, "success": self.success}

    def final(self) -> Mapping[str, float]:
        return self.info


class Recorder:
    """Records an episode of any environment from its `seed` on."""

    def __init__(self, env: Env, seed: int) -> None:
        self.env, self._seed, self._success = env, seed, False
        env.reset(seed)
        self._obs: list[dict[str, np.ndarray]] = []
        self._actions: list[np.ndarray] = []

    def step(self, action: np.ndarray) -> bool:
        """Executes `action`, rounded to float32 as it is stored. Returns whether the task is solved now."""
        self._obs.append(self.env.observe())
        self._actions.append(np.asarray(action, np.float32))
        self.env.step(self._actions[-1])
        self._success |= self.env.success
        return self.env.success

    def demonstration(self) -> RecordedEpisode:
        """Everything so far. Raises ValueError before the first step."""
        if not self._actions:
            raise ValueError("an episode without a step is no demonstration")
        obs = {name: np.stack([one[name] for one in self._obs]) for name in self._obs[0]}
        return RecordedEpisode(self._seed, obs, np.stack(self._actions), self._success, self.env.info())

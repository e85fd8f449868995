"""Records an episode frame by frame, as a data set stores it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from dp.tasks.demonstration import EXECUTED
from dp.tasks.env import Env


@dataclass(frozen=True)
class RecordedEpisode:
    """Observations by name, each (T, ...), actions (T, Da) as they were meant and as they were executed, and how it
    ended."""

    seed: int
    obs: dict[str, np.ndarray]
    action: Float[np.ndarray, "T Da"]
    executed: Float[np.ndarray, "T Da"]
    success: bool
    info: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.action)

    def frames(self) -> Mapping[str, np.ndarray]:
        return {**self.obs, "action": self.action, EXECUTED: self.executed}

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
        self._executed: list[np.ndarray] = []

    def step(self, action: np.ndarray, noise: np.ndarray | float = 0.0) -> bool:
        """Executes `action` + `noise`, and records both the action and the sum, rounded to float32. Returns whether the
        task is solved now."""
        self._obs.append(self.env.observe())
        self._actions.append(np.asarray(action, np.float32))
        self._executed.append((self._actions[-1] + noise).astype(np.float32))
        self.env.step(self._executed[-1])
        self._success |= bool(self.env.success)
        return bool(self.env.success)

    def demonstration(self) -> RecordedEpisode:
        """The recording so far. Raises ValueError before the first step."""
        if not self._actions:
            raise ValueError("an episode without a step is no demonstration")
        obs = {name: np.stack([one[name] for one in self._obs]) for name in self._obs[0]}
        actions, executed = np.stack(self._actions), np.stack(self._executed)
        return RecordedEpisode(self._seed, obs, actions, executed, self._success, self.env.info())

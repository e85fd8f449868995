"""Protocol of an environment. Rollouts use nothing else."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8


@runtime_checkable
class Env(Protocol):
    """One episode at a time, on the CPU. Frames are drawn only when a policy looks, so `step` returns nothing.

    control_hz: control steps per second. reward: of the present state. success: whether the task is solved now;
    None if the environment does not say.
    terminated: whether the episode is over, which neither reward nor success decides. The runner cuts an episode off
    after `max_steps`.
    """

    control_hz: float

    def reset(self, seed: int) -> None:
        """Begins the episode of `seed`, always the same one."""

    def observe(self) -> dict[str, np.ndarray]:
        """Name -> the present observation, raw: images uint8 (Y, X, 3), everything else float32."""

    def step(self, action: Float[np.ndarray, " Da"]) -> None:
        """Executes `action`, in raw units, for one control step."""

    @property
    def reward(self) -> float: ...

    @property
    def success(self) -> bool | None: ...

    @property
    def terminated(self) -> bool: ...

    def info(self) -> dict[str, float]:
        """Named quantities of the present state, for example {"distance": 0.12}: the same names every time."""

    def render(self) -> UInt8[np.ndarray, "Y X 3"]:
        """A picture for people. Both sides are even, as video codecs need."""

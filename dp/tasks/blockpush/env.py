"""Block Push as an environment: observations, reward, and pictures on demand."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dp.tasks.blockpush.layout import EFFECTOR_START, TOLERANCE, layout, within_reach
from dp.tasks.blockpush.task import FIRST, SECOND
from dp.tasks.blockpush.world import World

if TYPE_CHECKING:
    from dp.tasks.blockpush.camera import Camera

LONGEST_STEP = 0.1
"""Limit of each component of an action, metres."""

N_TRIES, ROOM = 20, 0.06
"""For disturbances: attempts to find room, and least distance between the centres of bodies, metres."""


class BlockPushEnv:
    """One episode of Block Push at a time.

    Args:
        obs_names: what `observe` returns: block_translation, block_orientation, block2_..., target_translation,
            target_orientation, target2_..., effector_translation, effector_target_translation. Translations (2,) are
            x and y in metres, orientations (1,) a yaw in radians.

    An action (2,) moves the effector's target, metres per control step. `entered[b, t]` says whether block b has ever
    been within 5 cm of target t. The reward stays when a block leaves its target again.

    Raises:
        ValueError: if pybullet is not installed.
    """

    control_hz = 10.0

    def __init__(self, obs_names: Sequence[str]) -> None:
        self.obs_names, self._world = list(obs_names), World()
        self.targets: Float[np.ndarray, "2 3"] = np.zeros((2, 3))
        self.effector_target: Float[np.ndarray, " 2"] = EFFECTOR_START
        self.entered: Bool[np.ndarray, "2 2"] = np.zeros((2, 2), bool)

    def reset(self, seed: int) -> None:
        """Begins the episode of `seed`, equal to the bit in every process."""
        start = layout(seed)
        self._world.reset(start.blocks)
        self.targets, self.effector_target = start.targets, EFFECTOR_START
        self.entered = np.zeros((2, 2), bool)

    def step(self, action: Float[np.ndarray, " 2"]) -> None:
        """Moves the effector's target by `action`, as far as the arm reaches, for a tenth of a second."""
        moved = self.effector_target + np.clip(action, -LONGEST_STEP, LONGEST_STEP).astype(float)
        self.effector_target = within_reach(moved)
        self._world.move(self.effector_target)
        between = self.blocks[:, None, :2] - self.targets[None, :, :2]
        self.entered = self.entered | (np.hypot(between[..., 0], between[..., 1]) < TOLERANCE)

    @property
    def blocks(self) -> Float[np.ndarray, "2 3"]:
        """x, y and yaw of each block."""
        return self._world.blocks

    @property
    def reward(self) -> float:
        return FIRST * float(self.entered.any()) + SECOND * float(self.success)

    @property
    def success(self) -> bool:
        """Whether both blocks have entered a target of their own."""
        return bool(self.entered.diagonal().all() or self.entered[::-1].diagonal().all())

    @property
    def terminated(self) -> bool:
        """Whether the episode is over: a solved one ends."""
        return self.success

    def info(self) -> dict[str, float]:
        """p1: whether a block has entered a target; its mean over episodes is p1 of the papers."""
        return {"p1": float(self.entered.any())}

    def observe(self) -> dict[str, np.ndarray]:
        (block, block2), (target, target2) = self.blocks, self.targets
        obs = {"effector_translation": self._world.effector, "effector_target_translation": self.effector_target}
        for name, pose in (("block", block), ("block2", block2), ("target", target), ("target2", target2)):
            obs |= {f"{name}_translation": pose[:2], f"{name}_orientation": pose[2:]}
        return {name: obs[name].astype(np.float32) for name in self.obs_names}

    def disturb(self, rng: np.random.Generator, strength: float) -> None:
        """Moves one of the blocks by `strength` metres in a random direction, if there is room for it."""
        for _ in range(N_TRIES):
            block, direction = int(rng.integers(2)), rng.uniform(0, 2 * np.pi)
            place = self.blocks[block, :2] + strength * np.array([np.cos(direction), np.sin(direction)])
            taken = np.stack([self.blocks[1 - block, :2], self._world.effector])
            if (within_reach(place) == place).all() and np.hypot(*(taken - place).T).min() > ROOM:
                self._world.place(block, place)
                return

    def render(self) -> UInt8[np.ndarray, "256 384 3"]:
        """A picture for people."""
        return _camera().picture(self._world.arm, self._world.block_poses, self.targets)


@cache
def _camera() -> "Camera":
    """One for all environments of a process, since it takes 50 MB."""
    from dp.tasks.blockpush.camera import Camera

    return Camera()

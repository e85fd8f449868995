"""Where things are on the table, in metres. The arm's base is the origin, x points away from it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

BLOCK_SIDE = 0.04
TARGET_SIDE = 0.12
"""Side of the square that is drawn. What counts is `TOLERANCE`."""

TOLERANCE = 0.05
"""A block has entered a target when their centres are closer than this."""

EFFECTOR_START = np.array([0.3, -0.4])

BLOCKS, BLOCKS_SPREAD, BLOCKS_APART = np.array([0.4, -0.2]), np.array([0.1, 0.15]), 0.1
"""Blocks start in a rectangle: its centre, half its sides, and the least distance between the blocks along x."""

TARGETS = np.array([[0.28, 0.2], [0.52, 0.2]])
TARGETS_SPREAD, TARGETS_TURN = np.array([0.005, 0.0075]), np.pi / 30
"""Targets deviate a little from `TARGETS`: metres, and radians."""

LOWER, UPPER = np.array([0.15, -0.5]), np.array([0.7, 0.5])
NEAREST, FARTHEST = 0.2, 0.7
"""Bounds of the effector's target: a rectangle, and distances from the arm's base."""


@dataclass(frozen=True)
class Layout:
    """Poses at the beginning of an episode: x and y in metres, yaw in radians."""

    blocks: Float[np.ndarray, "2 3"]
    targets: Float[np.ndarray, "2 3"]


def layout(seed: int) -> Layout:
    """The layout of `seed`: positions as in Shafiullah et al. 2022, and yaws within ±45°: blocks are cubes."""
    rng = np.random.default_rng(seed)
    blocks = np.zeros((2, 3))
    while abs(blocks[0, 0] - blocks[1, 0]) <= BLOCKS_APART:
        blocks[:, :2] = BLOCKS + rng.uniform(-BLOCKS_SPREAD, BLOCKS_SPREAD, (2, 2))
    blocks[:, 2] = rng.uniform(-np.pi / 4, np.pi / 4, 2)
    targets = np.zeros((2, 3))
    targets[:, :2] = rng.permutation(TARGETS) + rng.uniform(-TARGETS_SPREAD, TARGETS_SPREAD, (2, 2))
    targets[:, 2] = rng.uniform(-TARGETS_TURN, TARGETS_TURN, 2)
    return Layout(blocks, targets)


def within_reach(position: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " 2"]:
    """The effector's target closest to `position` that the arm reaches."""
    inside = np.clip(position, LOWER, UPPER)
    return inside * np.clip(1.0, NEAREST / np.hypot(*inside), FARTHEST / np.hypot(*inside))


def square(pose: Float[np.ndarray, " 3"], side: float) -> Float[np.ndarray, "5 2"]:
    """The closed outline of a square."""
    x, y, yaw = pose
    angles = yaw + np.pi / 4 + np.pi / 2 * np.arange(5)
    return np.array([x, y]) + side / np.sqrt(2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)

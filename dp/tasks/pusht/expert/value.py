"""Effect of every push on the block, and the control steps left after it."""

import functools
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int

from dp.progress import Progress
from dp.tasks.pusht.expert.pushes import PUSHES, STANDOFF
from dp.tasks.pusht.expert.simulator import CENTROID, GOAL, Simulator, clearance, pose_error, private_api_agrees, rotate

LENGTHS = np.arange(8.0, 141.0, 4.0)
"""Lengths of the pushes to choose from, in pixels."""

SETTLING = 3
"""Control steps in which the agent reaches its last target."""

WAY = 58.0
"""Cost of the way to a push, in control steps: twice the real cost, which makes pushes few and long like people's."""

LAST_PUSH, SLOPE = 30.0, 6.0
"""Cost, in control steps, of the last push with its walk, and of each pixel of pose error that it leaves."""

ENOUGH = 1.2
"""Pose error, in pixels, at which the task is solved: a little less than coverage 0.95 allows."""

EXTENT, N_PLACES, N_ANGLES = 250.0, 41, 36
"""Size of the value table: pixels from the goal along each axis, grid points per axis, grid points per turn."""


class Outcomes(NamedTuple):
    """N pushes: number in `PUSHES`, length in pixels, pose of the block afterwards in its old frame, control steps."""

    push: Int[np.ndarray, " N"]
    length: Float[np.ndarray, " N"]
    moved: Float[np.ndarray, "N 3"]
    steps: Float[np.ndarray, " N"]


@functools.cache
def outcomes(speed: float) -> Outcomes:
    """Every push for every length at which the agent still touches the block, at `speed` pixels per control step."""
    simulator, rows = Simulator(private_api_agrees(), walls=False), []
    way = np.arange(speed, STANDOFF + LENGTHS[-1] + 5 * speed, speed)[:, None] - STANDOFF
    pushes = Progress(PUSHES, desc="planner: trying pushes", unit="push", leave=False)
    for number, push in enumerate(pushes):
        targets = push.contact + np.where(way < 0, way * push.approach, way * push.direction)
        positions, poses = simulator.rollout(np.array([*push.start, 0, 0, 0]), np.zeros(5), targets[None])
        # A push has a length as far as the agent touches the block. Interpolate the pose after each length.
        length = np.maximum.accumulate((positions[0] - push.contact) @ push.direction)
        lost = (clearance(positions[0], poses[0]) > 1.5) & (length > 4)
        kept = length[lost.argmax()] >= LENGTHS if lost.any() else LENGTHS > 0
        for reached in LENGTHS[kept]:
            rows.append([number, reached, *(np.interp(reached, length, column) for column in poses[0].T)])
    # Columns: number of the push, its length, and the pose after it.
    table = np.array(rows)
    return Outcomes(table[:, 0].astype(int), table[:, 1], table[:, 2:], table[:, 1] / speed + SETTLING)


@functools.cache
def cost_to_go(speed: float) -> "CostToGo":
    """Returns the value table for pushes of `speed` pixels per control step."""
    pushes = outcomes(speed)
    return CostToGo(pushes, pushes.steps + WAY)


def without_a_push(pose: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
    """Control steps that the pose error is worth if nothing follows, plus those of a last push if one is needed."""
    error = pose_error(pose)
    return np.asarray(SLOPE * error + LAST_PUSH * (error > ENOUGH))


class CostToGo:
    """Control steps until the task is solved, from any pose of the block: value iteration (Bellman 1957) on a grid.

    Args:
        pushes: the outcomes to choose from.
        cost: control steps of each of them, with the way to it.
    """

    def __init__(self, pushes: Outcomes, cost: Float[np.ndarray, " N"]) -> None:
        axis = np.linspace(-EXTENT, EXTENT, N_PLACES)
        grid = np.stack(np.meshgrid(axis, axis, np.arange(N_ANGLES) * 2 * np.pi / N_ANGLES, indexing="ij"), axis=-1)
        centroid, angle = grid[..., :2], grid[..., 2]
        turned = angle + GOAL[2]
        # Poses of the grid, whose coordinates are the centroid and the angle as seen from the goal.
        place = _GOAL + rotate(centroid, GOAL[2]) - rotate(CENTROID, turned)
        pose = np.concatenate([place, turned[..., None]], axis=-1)
        self._table = torch.as_tensor(without_a_push(pose), dtype=torch.float32)
        # Iterate over a sixth of the lengths: a push moves the centroid by `shift` in the block's frame.
        use = pushes.length % 24 == LENGTHS[0]
        moved = pushes.moved[use]
        shift = moved[:, :2] + rotate(CENTROID, moved[:, 2]) - CENTROID
        after = [_normalized(centroid + rotate(d, angle), angle + m) for d, m in zip(shift, moved[:, 2], strict=True)]
        change = np.inf
        bar = Progress(desc="planner: value table", unit="round", leave=False)
        while change > 1:
            bar.update()
            # Bellman's update: the cheapest of all pushes, each with the value of the pose after it.
            ways = [self._interpolate(where) + float(steps) for where, steps in zip(after, cost[use], strict=True)]
            table = torch.stack([self._table, *ways]).amin(0)
            change, self._table = float((self._table - table).max()), table
        bar.close()

    def __call__(self, pose: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
        centroid = rotate(pose[..., :2] + rotate(CENTROID, pose[..., 2]) - _GOAL, -GOAL[2])
        value = self._interpolate(_normalized(centroid, pose[..., 2] - GOAL[2])).numpy()
        return np.asarray(np.minimum(value, without_a_push(pose)))

    def _interpolate(self, where: torch.Tensor) -> torch.Tensor:
        """Trilinear; the first angle is the last, too."""
        table = torch.cat([self._table, self._table[..., :1]], dim=-1)[None, None]
        flat = torch.nn.functional.grid_sample(
            table, where.reshape(1, 1, 1, -1, 3), padding_mode="border", align_corners=True
        )
        outside = (where[..., 1:].abs() > 1).any(-1)
        return flat.reshape(where.shape[:-1]) + 1e4 * outside


_GOAL = GOAL[:2] + rotate(CENTROID, GOAL[2])


def _normalized(centroid: Float[np.ndarray, "*B 2"], angle: Float[np.ndarray, "*B"]) -> torch.Tensor:
    """As `grid_sample` wants it: the last axis first, everything -1..1. The centroid as seen from the goal's."""
    y, x = centroid[..., 1] / EXTENT, centroid[..., 0] / EXTENT
    return torch.as_tensor(np.stack([np.mod(angle, 2 * np.pi) / np.pi - 1, y, x], axis=-1), dtype=torch.float32)

"""A scripted oracle that solves Block Push in each of the possible ways."""

from dataclasses import dataclass
from functools import cache
from typing import Annotated

import numpy as np
from annotated_types import Interval
from jaxtyping import Bool, Float

from dp.tasks.blockpush.engine import installed
from dp.tasks.blockpush.env import BlockPushEnv
from dp.tasks.blockpush.layout import BLOCK_SIDE
from dp.tasks.blockpush.world import TOOL_RADIUS
from dp.tasks.recorder import RecordedEpisode, Recorder

OBS_NAMES = (
    "block_translation",
    "block_orientation",
    "block2_translation",
    "block2_orientation",
    "effector_translation",
    "effector_target_translation",
    "target_translation",
    "target_orientation",
    "target2_translation",
    "target2_orientation",
)
"""Observations in a demonstration, in the order of the reference environment."""

CONTACT = BLOCK_SIDE / 2 + TOOL_RADIUS
"""Distance between the centres of block and effector when the effector touches the middle of a face, metres."""

BEHIND, ARRIVED = 0.07, 0.012
"""A push begins this far from the block's centre, and once the effector is this close to that point, metres."""

CLEARANCE, DETOUR = 0.055, 0.06
"""Distance that the effector keeps from the centres of blocks on its way, and at which it passes one, metres."""

OUTWARDS = 10.0
"""Weight of the way out, for an effector that is closer to a block than that, per relative shortfall."""

ASTRAY = 0.02
"""Distance of the effector from the line of a push, metres, at which it begins the push again."""

STEERING = 0.5
"""Share of that distance that a control step corrects."""

DEEP = 0.03
"""A block counts as delivered at this distance from its target, metres: whoever imitates it need not be exact."""

Point = Float[np.ndarray, " 2"]


@dataclass(frozen=True)
class Oracle:
    """Pushes one block after the other. The seed decides which comes first, and into which target it goes.

    A push begins behind the block, on the line from the target through its centre. The effector steers to stay on that
    line, and begins again if it leaves it. The same seed gives the same demonstration in every process.

    Args:
        speed: of the effector on its way to a push, metres per control step.
        push_speed: during a push.
        noise: standard deviation of what is added to both components of an action, metres. The demonstration shows the
            action with its noise.
        max_steps: control steps after which an episode has failed.

    Raises:
        ValueError: if pybullet is not installed.
    """

    speed: Annotated[float, Interval(ge=0.001, le=0.1)] = 0.03
    push_speed: Annotated[float, Interval(ge=0.001, le=0.1)] = 0.02
    noise: Annotated[float, Interval(ge=0, le=0.1)] = 0.002
    max_steps: Annotated[int, Interval(ge=1, le=10_000)] = 350

    def __post_init__(self) -> None:
        installed()  # an error now, and not in a worker process

    def __call__(self, seed: int) -> RecordedEpisode | None:
        return self.solve(seed, np.zeros((0, 2), np.float32))

    def solve(self, seed: int, actions: Float[np.ndarray, "T 2"]) -> RecordedEpisode | None:
        """Its solution from where `actions` lead in the episode of `seed`; None if it finds none in time."""
        env = _env()
        recorder = Recorder(env, seed)
        for action in actions:
            env.step(action)
        hand = _Hand(self, env, np.random.default_rng([seed, len(actions)]))
        for _ in range(self.max_steps):
            if recorder.step(hand.action()):
                return recorder.demonstration()
        return None


def finish(seed: int, actions: Float[np.ndarray, "T 2"]) -> RecordedEpisode | None:
    """What the oracle does from where `actions` lead in the episode of `seed`; None if it finds no solution."""
    return Oracle().solve(seed, actions)


@cache
def _env() -> BlockPushEnv:
    return BlockPushEnv(OBS_NAMES)


class _Hand:
    """Moves the effector through one episode."""

    def __init__(self, oracle: Oracle, env: BlockPushEnv, rng: np.random.Generator) -> None:
        self._oracle, self._env, self._rng = oracle, env, rng
        self._deliveries, self._pushing = _deliveries(env.entered, rng), False

    def action(self) -> Point:
        """The next action, with its noise."""
        blocks, targets = self._env.blocks[:, :2], self._env.targets[:, :2]
        if len(self._deliveries) > 1 and _distance(blocks, targets, self._deliveries[0]) < DEEP:
            self._deliveries, self._pushing = self._deliveries[1:], False
        block, target = self._deliveries[0]
        meant = self._towards(blocks[block], targets[target], blocks)
        return meant + self._rng.normal(scale=self._oracle.noise, size=2)

    def _towards(self, block: Point, target: Point, obstacles: Float[np.ndarray, "2 2"]) -> Point:
        """The next step of the push that brings the block to the target, or of the way there."""
        hand, ahead = self._env.effector_target, _unit(target - block)
        aside = np.array([-ahead[1], ahead[0]])
        from_block = hand - block
        offset, distance = from_block @ aside, -from_block @ ahead
        start = block - BEHIND * ahead
        if self._pushing:
            self._pushing = abs(offset) < ASTRAY and distance > CONTACT / 2
        else:
            self._pushing = bool(np.hypot(*(start - hand)) < ARRIVED)
        if self._pushing:
            return self._oracle.push_speed * ahead - STEERING * offset * aside
        step = _way(hand, start, obstacles) - hand
        return step * min(1.0, self._oracle.speed / max(float(np.hypot(*step)), 1e-9))


def _deliveries(entered: Bool[np.ndarray, "2 2"], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Pairs of block and target that solve the task, in a random order. Where blocks have entered targets already, only
    the shortest ways to finish are left to choose from."""
    ways = [[(0, 0), (1, 1)], [(0, 1), (1, 0)]]
    left = [[pair for pair in way if not entered[pair]] for way in ways]
    shortest = [way for way in left if len(way) == min(map(len, left))]
    way = shortest[rng.integers(len(shortest))]
    return [way[number] for number in rng.permutation(len(way))]


def _distance(blocks: Float[np.ndarray, "2 2"], targets: Float[np.ndarray, "2 2"], pair: tuple[int, int]) -> float:
    return float(np.hypot(*(blocks[pair[0]] - targets[pair[1]])))


def _unit(vector: Point) -> Point:
    return vector / max(float(np.hypot(*vector)), 1e-9)


def _way(hand: Point, goal: Point, obstacles: Float[np.ndarray, "n 2"]) -> Point:
    """The goal if the straight way is free, else a point next to the closest block that is in the way."""
    course = goal - hand
    for block in sorted(obstacles, key=lambda block: float(np.hypot(*(block - hand)))):
        # The point of the straight way that is closest to the block.
        share = np.clip((block - hand) @ course / max(course @ course, 1e-12), 0, 1)
        if share == 0 or np.hypot(*(hand + share * course - block)) > CLEARANCE:
            continue
        away = hand - block
        aside = _unit(np.array([-away[1], away[0]]))
        aside = aside if aside @ course > 0 else -aside
        distance = float(np.hypot(*away))
        if distance > DETOUR:
            return block + DETOUR * aside
        shortfall = max(0.0, CLEARANCE / max(distance, 1e-9) - 1)
        return hand + BEHIND * _unit(aside + OUTWARDS * shortfall * _unit(away))
    return goal

"""The facts of Block Push: its protocol, published scores, and its metric in words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dp.tasks.blockpush.layout import BLOCK_SIDE, TARGET_SIDE, TARGETS, layout, square
from dp.tasks.task import DEMONSTRATION_SEEDS, Protocol, Reference, Scene, Task

if TYPE_CHECKING:
    from dp.tasks.blockpush.oracle import Oracle
    from dp.tasks.demonstration import Expert

FIRST, SECOND = 0.49, 0.51
"""Rewards for the first block that enters a target, and for the second that enters the other one."""

REFERENCES = (
    Reference("paper, DP-T", round(FIRST * 0.99 + SECOND * 0.94, 2), "in the reference environment", "--"),
    Reference("paper, BET", round(FIRST * 0.96 + SECOND * 0.71, 2), "in the reference environment", ":"),
)
"""Chi et al. 2023, table IV: p1 0.99 and 0.96, p2 0.94 and 0.71. DP-C reached 0.36 and 0.11."""

FIRST_SEED = DEMONSTRATION_SEEDS.stop
"""First seed of both protocols."""

MAP = (0.2, 0.6, -0.42, 0.3)
"""Bounds of the part of the table that blocks start and end in: left, right, bottom, top, metres."""


class BlockPush(Task):
    """Push two blocks into two targets, each into one of its own, in any order. Every start has several solutions:
    either block first, into either target. Observations: see `dp.tasks.blockpush.env.BlockPushEnv`.

    The environment is written anew from the papers, on pybullet. Scores of the reference environment are for
    orientation.
    """

    score: ClassVar[str] = f"mean over episodes of the best reward, reward = {FIRST} p1 + {SECOND} p2"
    success: ClassVar[str] = "share of episodes in which both blocks have entered a target of their own (p2)"
    reset: ClassVar[str] = "layout from numpy.random.default_rng(seed)"
    near_miss: ClassVar[float | None] = FIRST  # one block has entered a target
    packages: ClassVar[tuple[str, ...]] = ("pybullet",)
    default_protocols: ClassVar[tuple[Protocol, ...]] = (
        Protocol("blocks-50", 50, FIRST_SEED, 350),
        Protocol("blocks-500", 500, FIRST_SEED, 350),
    )
    default_bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"reward": (0.0, 1.0), "p1": (0.0, 1.0)}

    @property
    def references(self) -> Sequence[Reference]:
        return REFERENCES

    @property
    def demonstrator(self) -> "Oracle":
        from dp.tasks.blockpush.oracle import Oracle

        return Oracle()

    @property
    def expert(self) -> "Expert":
        from dp.tasks.blockpush.oracle import finish

        return finish

    def scene(self, seed: int) -> Scene:
        starts = [square(pose, BLOCK_SIDE) for pose in layout(seed).blocks]
        goal = [square(np.array([*centre, 0.0]), TARGET_SIDE) for centre in TARGETS]  # the same map for all episodes
        return Scene("pair of blocks", starts, goal, MAP)

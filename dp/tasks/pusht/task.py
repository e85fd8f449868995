"""The facts of PushT: protocols, published scores, and its metric in words."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dp.tasks.pusht.sources import OFFICIAL_SHA256, locate
from dp.tasks.task import Columns, Protocol, Reference, Scene, Task

if TYPE_CHECKING:
    from torch import Tensor

    from dp.tasks.demonstration import Expert
    from dp.tasks.pusht.demonstration import Recorder
    from dp.tasks.pusht.env import PushTEnv
    from dp.types import Critic, Obs

IMAGE = (
    Reference("paper, best checkpoint", 0.91, "3 seeds × 50 episodes", "--"),
    Reference("paper, mean of last 10", 0.84, "3 seeds × 50 episodes", ":"),
    Reference("LeRobot's model card", 0.955, "1 seed × 500 episodes", "-."),
)
STATE = (
    Reference("paper (keypoints), best checkpoint", 0.95, "3 seeds × 50 episodes", "--"),
    Reference("paper (keypoints), mean of last 10", 0.91, "3 seeds × 50 episodes", ":"),
)
"""DP-CNN on PushT: Chi et al. 2023, tables 1 and 2 (state: keypoints); lerobot/diffusion_pusht."""

MAP = (44.0, 456.0, 500.0, 88.0)
"""Bounds of the part of the workspace that blocks start in: left, right, bottom, top, pixels (y points down)."""


class PushT(Task):
    """Push a T-shaped block onto its goal pose. Observations: see `dp.tasks.pusht.state.low_dim_obs`, and "image"."""

    score: ClassVar[str] = "mean over episodes of the best reward, reward = min(1, coverage / 0.95)"
    success: ClassVar[str] = "share of episodes in which coverage exceeds 0.95"
    reset: ClassVar[str] = "initial state from numpy.random.RandomState(seed), as in the reference environment"
    near_miss: ClassVar[float | None] = 0.9  # the block covered 85.5 % of the goal
    packages: ClassVar[tuple[str, ...]] = ("gym-pusht", "pymunk", "pygame", "gymnasium")
    data_names: ClassVar[Mapping[str, str]] = dict.fromkeys(OFFICIAL_SHA256, "official")
    default_protocols: ClassVar[tuple[Protocol, ...]] = (
        Protocol("paper-50", 50, 100_000, 300),
        Protocol("paper-500", 500, 100_000, 300),
    )
    default_bounds: ClassVar[Mapping[str, tuple[float, float]]] = {"reward": (0.0, 1.0), "coverage": (0.0, 1.0)}
    demonstration_seeds: ClassVar[range] = range(206, 100_000)  # 0-205 are the official demonstrations'

    @property
    def references(self) -> Sequence[Reference]:
        return IMAGE if "image" in self.shape_meta["obs"] else STATE

    @property
    def tested_in(self) -> str:
        return "PushT"

    def data_path(self, name: str) -> Path | None:
        return locate("auto", name) if name in ("official", "bundled") else None

    def recorder(self) -> "Callable[[int], Recorder]":
        """Records states. Images are rendered from them on demand."""
        from dp.tasks.pusht.demonstration import Recorder
        from dp.tasks.pusht.env import PushTEnv

        return partial(Recorder, env=PushTEnv([]))

    @property
    def simulator_critic(self) -> "Callable[[int], Critic]":
        from dp.tasks.pusht.expert.critic import SimulatorCritic

        return SimulatorCritic

    @property
    def expert(self) -> "Expert":
        from dp.tasks.pusht.expert.finisher import finish

        return finish

    def columns(self) -> tuple[Columns, Columns]:
        """The official data set's columns, and those that it takes to run an episode again."""
        from dp.tasks.pusht.demonstration import FACTS, FRAMES

        return FRAMES, FACTS

    def scene(self, seed: int) -> Scene:
        env = _env()
        env.reset(seed)
        block, goal = env.outlines()
        return Scene("T", [block], [goal], MAP)

    def statistics(self, store: Path) -> Mapping[str, str]:
        """Statistics to compare with the official demonstrations' (`dp.tasks.pusht.statistics.OFFICIAL`)."""
        from dp.tasks.pusht.statistics import describe

        return describe(store)

    def idle(self, obs: "Obs", action_dim: int) -> "Tensor":
        """The agent stays where it is. Raises ValueError if the policy does not see where that is."""
        if "agent_pos" not in obs:
            raise ValueError(f"staying put needs the observation agent_pos, but the task has {sorted(obs)}")
        return obs["agent_pos"][:, -1]


@cache
def _env() -> "PushTEnv":
    from dp.tasks.pusht.env import PushTEnv

    return PushTEnv([])

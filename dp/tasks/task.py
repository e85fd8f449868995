"""The facts of a task. Everything outside `dp/tasks/` asks here and knows no task by name."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from dp.tasks.demonstration import EXECUTED
from dp.tasks.env import Env

if TYPE_CHECKING:  # the processes that step environments import this file, and not torch
    from torch import Tensor

    from dp.tasks.demonstration import Collector, Expert, Recording
    from dp.types import Critic, Obs

Columns = Mapping[str, tuple[str, tuple[int, ...]]]

DEMONSTRATION_SEEDS = range(1000, 100_000)

START_SEED = 1000
"""Seed of the first demonstration, unless the task keeps it for tests."""


@dataclass(frozen=True)
class Protocol:
    """A test of a policy: `n_episodes` episodes from env seed `start_seed` on, of at most `max_steps` control
    steps. Scores of different protocols are never compared."""

    name: str
    n_episodes: int
    start_seed: int
    max_steps: int


@dataclass(frozen=True)
class Reference:
    """A published score, the line it gets in plots, and the protocol without which it means nothing."""

    name: str
    score: float
    protocol: str
    line: str = "--"


@dataclass(frozen=True)
class Scene:
    """The start and the goal of an episode, for a map of many episodes.

    name: noun for what starts somewhere, as in "where its <name> starts".
    starts: its outlines, closed polygons in units of the task's own. goal: outlines of where it must end.
    bounds: (left, right, bottom, top) of the map, in the same units. `bottom` is the larger one where y points down.
    """

    name: str
    starts: Sequence[Float[np.ndarray, "_ 2"]]
    goal: Sequence[Float[np.ndarray, "_ 2"]]
    bounds: tuple[float, float, float, float]


class Task:
    """The facts of a task. A YAML file makes one of any environment; a subclass has more to say.

    Args:
        name: for tables and directories.
        shape_meta: {"obs": {name: {"type": "rgb" or "low_dim", "shape": [...]}}, "action": {"shape": [Da]}}, see
            `dp.modalities.Spec`.
        env: makes an environment (`dp.types.Env`); None for a task without a simulator, which trains, keeps its best
            checkpoints by validation, and is not rolled out.
        protocols: name -> {"n_episodes", "start_seed", "max_steps"}; the first is the default. None: the class's.
        bounds: name -> [least, greatest] of the reward ("reward") and of the environment's named quantities, besides
            the class's. Quantities without bounds get Student's interval, which may leave the possible range.

    Raises:
        ValueError: for a protocol that lacks one of the three numbers, and for bounds that do not ascend.
    """

    score: ClassVar[str] = "mean over episodes of the best reward"
    """Definition of the score, in words that follow a number."""

    success: ClassVar[str] = "share of episodes that succeed"
    """Definition of success, in words that follow a number."""

    reset: ClassVar[str] = "initial states from env.reset(seed)"
    """Definition of the initial state that belongs to a seed."""

    near_miss: ClassVar[float | None] = None
    """Best reward from which a failed episode is a near miss; None if there is no such thing."""

    packages: ClassVar[tuple[str, ...]] = ("gymnasium",)
    """Distributions whose versions are recorded with every result."""

    data_names: ClassVar[Mapping[str, str]] = {}
    """Names of well-known data sets, by their sha256."""

    default_protocols: ClassVar[tuple[Protocol, ...]] = (Protocol("default-50", 50, 100_000, 300),)

    default_bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    """The least and the greatest reward ("reward"), and the same of named quantities."""

    demonstration_seeds: ClassVar[range] = DEMONSTRATION_SEEDS
    """Seeds that demonstrations may be collected from: no protocol tests on them."""

    def __init__(
        self,
        name: str,
        shape_meta: Mapping[str, Any],
        env: Callable[..., Env] | None = None,
        protocols: Mapping[str, Mapping[str, int]] | None = None,
        bounds: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        self.name, self.shape_meta, self.env = name, shape_meta, env
        self.protocols = (
            self.default_protocols if not protocols else tuple(_protocol(*item) for item in protocols.items())
        )
        self.bounds = {**self.default_bounds, **{key: _bounds(key, pair) for key, pair in (bounds or {}).items()}}

    def protocol(self, name: str | None) -> Protocol:
        """The protocol of this name; None: the default. Raises ValueError for an unknown one."""
        found = [protocol for protocol in self.protocols if name in (None, protocol.name)]
        if not found:
            known = ", ".join(protocol.name for protocol in self.protocols)
            raise ValueError(f"protocol={name}, expected one of: {known}")
        return found[0]

    def name_of(self, n_episodes: int, start_seed: int, max_steps: int) -> str | None:
        """The name of the protocol with these numbers; None if none has them."""
        same = [
            p.name
            for p in self.protocols
            if (p.n_episodes, p.start_seed, p.max_steps) == (n_episodes, start_seed, max_steps)
        ]
        return same[0] if same else None

    @property
    def obs_names(self) -> list[str]:
        """The observations, in the order in which encoders concatenate them."""
        return list(self.shape_meta["obs"])

    @property
    def references(self) -> Sequence[Reference]:
        """Published scores of policies with these observations."""
        return ()

    @property
    def demonstrated(self) -> str:
        """What its demonstrations show. Stores of something else are not mixed with them."""
        return self.name

    @property
    def tested_in(self) -> str:
        """The environment, whatever is observed of it. Policies that share it can be compared episode by episode."""
        return self.name

    @property
    def make_env(self) -> Callable[[], Env] | None:
        """Makes an environment that observes what the task says; None without a simulator."""
        if self.env is None:
            return None
        taken = "obs_names" in inspect.signature(self.env).parameters
        return partial(self.env, obs_names=self.obs_names) if taken else self.env

    @property
    def control_hz(self) -> float | None:
        """Control steps per second; None without a simulator, or if it does not say."""
        return getattr(getattr(self.env, "func", self.env), "control_hz", None)

    def recorder(self) -> "Callable[[int], Recording]":
        """Begins a recording from a seed, in an environment of its own. Raises ValueError without a simulator."""
        from dp.tasks.recorder import Recorder

        if self.make_env is None:
            raise ValueError(f"task {self.name} has no simulator (task.env=null): nothing can be recorded")
        return partial(Recorder, self.make_env())

    @property
    def simulator_critic(self) -> "Callable[[int], Critic] | None":
        """Makes, given Ta, a critic that tries plans in the task's physics from `Env.snapshot`; None: there is none."""
        return None

    @property
    def demonstrator(self) -> "Collector | None":
        """Makes the demonstrations of `dataset=collected`; None: nobody can."""
        return None

    @property
    def expert(self) -> "Expert | None":
        """Finishes episodes that a policy does not solve (`collector=takeover`); None: nobody can."""
        return None

    def data_path(self, name: str) -> Path | None:
        """Where the demonstrations lie that people know by this name; None for a name that the task does not know."""
        return None

    def first_seed(self, start_seed: int | None, key: str) -> int:
        """Seed of the first demonstration; None: `START_SEED`, or the first that the task does not keep for tests.

        Raises ValueError, naming `key`, for a seed that it keeps.
        """
        seeds = self.demonstration_seeds
        if start_seed is None:
            start_seed = START_SEED if START_SEED in seeds else seeds[0]
        if start_seed not in seeds:
            raise ValueError(
                f"{key}={start_seed}, expected {seeds[0]} to {seeds[-1]}: the task {self.name} keeps other seeds for "
                "tests"
            )
        return start_seed

    def columns(self) -> tuple[Columns, Columns]:
        """Columns of a store of recordings, per frame and per episode: array -> (dtype, shape of a row)."""
        action = self.shape_meta["action"]
        entries = {**self.shape_meta["obs"], "action": action, EXECUTED: action}
        frames = {name: _column(entry) for name, entry in entries.items()}
        return frames, {"seed": ("<i8", ()), "source": ("<U16", ()), "success": ("|b1", ())}

    def scene(self, seed: int) -> Scene | None:
        """Start and goal of the episode of `seed`; None if a map would show nothing."""
        return None

    def statistics(self, store: Path) -> Mapping[str, str]:
        """Statistics of a store of demonstrations, by name."""
        return {}

    def idle(self, obs: "Obs", action_dim: int) -> "Tensor":
        """Actions (B, Da) that change as little as possible: what the baseline `do_nothing` does."""
        some = next(iter(obs.values()))
        return some.new_zeros((len(some), action_dim)).float()


def _column(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    shape = tuple(entry["shape"])
    return ("|u1", (*shape[1:], shape[0])) if entry.get("type") == "rgb" else ("<f4", shape)


def _protocol(name: str, numbers: Mapping[str, int]) -> Protocol:
    wanted = {"n_episodes", "start_seed", "max_steps"}
    if set(numbers) != wanted:
        raise ValueError(f"protocols.{name} has {sorted(numbers)}, expected {sorted(wanted)}")
    return Protocol(name, **numbers)


def _bounds(name: str, pair: Sequence[float]) -> tuple[float, float]:
    if not isinstance(pair, Sequence) or len(pair) != 2 or not pair[0] < pair[1]:
        raise ValueError(f"bounds.{name}={pair}, expected two numbers, the smaller one first: [0, 1]")
    return float(pair[0]), float(pair[1])

"""Rolls a policy out in many environments at once and says how well it did."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from dp import intervals
from dp.guidance.unguided import Unguided
from dp.intervals import Bounds, Estimate
from dp.kernels.switch import ROWS
from dp.limits import Count, EnvSeed, Workers
from dp.progress import Progress
from dp.rollouts.episode import KICK_EVERY, Chunk, Episode
from dp.rollouts.pool import EnvPool
from dp.types import Env, Guidance, Obs, Policy, Situation

Episodes = Annotated[int, Interval(ge=1, le=10**7)]
"""Number of episodes, or of an episode's control steps."""


@dataclass
class EpisodeResult:
    """One episode: `seed` of its initial state, best reward, whether the task was ever solved (None if the
    environment does not say), control steps taken, control steps per second, the environment's named quantities at the
    end, the executed actions, each (Da,), with their rewards, and pictures (Y, X, 3) uint8, if recorded."""

    seed: int
    max_reward: float = -math.inf
    success: bool | None = False
    length: int = 0
    info: dict[str, float] = field(default_factory=dict)
    control_hz: float = 10.0
    frames: list[np.ndarray] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)

    def add(self, chunk: Chunk, actions: np.ndarray) -> None:
        """Adds the outcome of `actions` (Ta, Da), the last of which may not have been executed."""
        self.actions += list(actions[: len(chunk.rewards)])
        self.rewards += chunk.rewards
        self.max_reward = max([self.max_reward, *chunk.rewards])
        self.success = None if chunk.success is None else bool(self.success) or chunk.success
        self.length += len(chunk.rewards)
        self.info = chunk.info
        self.frames += chunk.frames

    def row(self) -> dict[str, int | float | bool | None]:
        """The episode's row in rollouts/<step>.json and evaluation.json."""
        row = {name: getattr(self, name) for name in ("seed", "max_reward", "success", "length")}
        return row | {f"final_{name}": value for name, value in self.info.items()}


@dataclass(frozen=True)
class RolloutResult:
    """Episodes in the order of their seeds. bounds: of the reward and of named quantities, as far as they are known."""

    episodes: list[EpisodeResult]
    bounds: Mapping[str, Bounds] = field(default_factory=dict)

    @property
    def score(self) -> Estimate:
        """Mean over episodes of the best reward."""
        return intervals.mean([e.max_reward for e in self.episodes], self.bounds.get("reward"))

    @property
    def success(self) -> Estimate:
        """Share of episodes in which the task was solved; unknown if the environment does not say."""
        judged = [e.success for e in self.episodes if e.success is not None]
        return intervals.proportion(sum(judged), len(judged))

    @property
    def length(self) -> Estimate:
        """Mean number of control steps."""
        return intervals.mean([e.length for e in self.episodes])

    def quantities(self) -> dict[str, Estimate]:
        """Mean over episodes of each named quantity at their end."""
        names = dict.fromkeys(name for e in self.episodes for name in e.info)
        return {
            name: intervals.mean([e.info.get(name, math.nan) for e in self.episodes], self.bounds.get(name))
            for name in names
        }


class EnvRunner:
    """Runs one episode per seed.

    All live environments are denoised in one batch; a finished one stops and makes room for the next seed. Every
    episode draws its noise from a generator of its own, seeded by the episode's seed, so results depend neither on
    `n_envs` nor on `n_workers`.

    Args:
        make_env: makes an environment.
        n_obs_steps: To.
        n_episodes: test episodes, from seed `start_seed` on.
        start_seed: env seed of the first test episode.
        n_train_episodes: episodes from the initial states of training demonstrations.
        max_steps: most control steps of an episode, or seed -> steps if they differ.
        protocol: name of this test, quoted with every score.
        obs_names: what the policy sees of an environment's observations; None: all of them.
        guidance: what is executed of what a policy samples; None: the sample.
        bounds: of the reward ("reward") and of named quantities, for intervals that respect them.
        n_envs: environments at once.
        n_workers: processes that step them, started by `start` or at the first rollout, and kept; 0 steps them in this
            one.
        n_videos: test episodes to record, from the first on.
        n_late: control steps that pass between an observation and the first action that it decides. Meanwhile the last
            plan goes on, as on a robot that does not wait for its policy.
        kick: strength of the disturbance that the environment (`disturb`) gets every `KICK_EVERY` steps; 0: none.

    Raises:
        ValueError: for impossible counts, if the last seed is larger than environments accept, and for a kick that no
            episode is long enough for.
    """

    def __init__(
        self,
        make_env: Callable[[], Env],
        n_obs_steps: int,
        n_episodes: Episodes,
        start_seed: EnvSeed,
        n_train_episodes: Count,
        max_steps: Episodes | Mapping[int, int],
        n_envs: Annotated[int, Interval(ge=1, le=10_000)],
        n_workers: Workers,
        n_videos: Count,
        protocol: str = "custom",
        obs_names: Sequence[str] | None = None,
        bounds: Mapping[str, Bounds] | None = None,
        guidance: Guidance | None = None,
        n_late: Count = 0,
        kick: Annotated[float, Interval(ge=0)] = 0.0,
    ) -> None:
        shortest = max_steps if isinstance(max_steps, int) else min(max_steps.values())
        _check_least(1, {"n_episodes": n_episodes, "max_steps": shortest, "n_envs": n_envs})
        rest = {"start_seed": start_seed, "n_train_episodes": n_train_episodes, "n_workers": n_workers}
        _check_least(0, {**rest, "n_videos": n_videos})
        longest = max_steps if isinstance(max_steps, int) else max(max_steps.values())
        if kick and longest <= KICK_EVERY:
            raise ValueError(
                f"kick={kick} comes every {KICK_EVERY} control steps, but no episode is longer than {longest}: there "
                "would be none"
            )
        if start_seed + n_episodes > 2**32:
            raise ValueError(f"start_seed={start_seed}, expected one with n_episodes={n_episodes} seeds below 2**32")
        self.max_steps, self.protocol, self.bounds = max_steps, protocol, dict(bounds or {})
        self.seeds = list(range(start_seed, start_seed + n_episodes))
        self.n_train_episodes, self.n_envs, self.n_videos = n_train_episodes, n_envs, n_videos
        self.guidance, self.n_late, self.kick = guidance or Unguided(), n_late, kick
        make_episode = partial(_make_episode, make_env, n_obs_steps, obs_names, self.guidance.sees_state, kick)
        self._pool = EnvPool(make_episode, min(n_workers, n_envs))

    def start(self) -> None:
        """Starts the worker processes in the background, so that errors appear before the first rollout."""
        self._pool.start()

    def run(self, policy: Policy, device: torch.device) -> RolloutResult:
        """Runs the test episodes."""
        return self._run(policy, device, self.seeds, self.n_videos, "rollouts")

    def run_train(self, policy: Policy, device: torch.device, seeds: Sequence[int]) -> RolloutResult | None:
        """Runs episodes from the initial states of training demonstrations, whose seeds are given."""
        first = list(seeds[: self.n_train_episodes])
        return self._run(policy, device, first, 0, "train seeds") if first else None

    def latency_ms(self, policy: Policy, device: torch.device, repeats: int = 5) -> float:
        """Median time from one observation to its actions, milliseconds, after two calls to warm up."""
        chunk = self._pool.reset({0: (self.seeds[0], self._max_steps(self.seeds[0]), False)})[0]
        obs, times = _stack([chunk], device), []
        situation = Situation(torch.Generator(device), chunk.state)
        for _ in range(2 + repeats):
            start = time.perf_counter()
            self.guidance.act(policy, obs, [situation]).cpu()
            times.append(time.perf_counter() - start)
        return 1000 * float(np.median(times[2:]))

    def close(self) -> None:
        """Ends the worker processes."""
        self._pool.close()

    def stream(
        self,
        policy: Policy,
        device: torch.device,
        seeds: Iterable[int],
        n_videos: int = 0,
        acted: Callable[[], object] = lambda: None,
    ) -> Iterator[EpisodeResult]:
        """Yields one episode per seed, in the order in which they end. `seeds` may be endless.

        acted: called after every chunk of actions, long before an episode ends.
        """
        waiting = iter(enumerate(seeds))
        running: dict[int, EpisodeResult] = {}  # by env
        situations: dict[int, Situation] = {}
        chunks: dict[int, Chunk] = {}  # env -> its latest chunk
        while True:
            # Idle environments start the next seeds.
            idle = [env for env in range(self.n_envs) if env not in running]
            starting = {env: (seed, number < n_videos) for env, (number, seed) in zip(idle, waiting, strict=False)}
            if starting:
                chunks |= self._pool.reset({e: (s, self._max_steps(s), rec) for e, (s, rec) in starting.items()})
            for env, (seed, _) in starting.items():
                running[env] = EpisodeResult(seed, control_hz=chunks[env].control_hz, frames=chunks[env].frames)
                situations[env] = Situation(torch.Generator(device).manual_seed(seed))
            if not running:
                return
            # All running environments get a chunk of actions, and those that end make room.
            actions = self._act(policy, [(chunks[env], situations[env]) for env in running], device)
            planned = dict(zip(running, actions, strict=True))
            chunks = self._pool.step(planned)
            acted()
            for env, chunk in chunks.items():
                running[env].add(chunk, planned[env])
                if chunk.ended:
                    yield running.pop(env)

    def _run(self, policy: Policy, device: torch.device, seeds: list[int], n_videos: int, desc: str) -> RolloutResult:
        with Progress(total=len(seeds), desc=desc, unit="episode", leave=False) as bar:
            ended = {}
            for episode in self.stream(policy, device, seeds, n_videos, bar.refresh):
                ended[episode.seed] = episode
                bar.update()
        return RolloutResult([ended[seed] for seed in seeds], self.bounds)

    def _act(self, policy: Policy, live: list[tuple[Chunk, Situation]], device: torch.device) -> np.ndarray:
        """Actions (B, Ta, Da) for the environments that the chunks come from, in one batch.

        Matrix products round the same row differently in very small batches; padded to blocks, an episode does not
        depend on how many others run. Raises ValueError for actions that are not finite, which have no score.
        """
        for chunk, situation in live:
            situation.state = chunk.state
        first = live[0][0]
        spare = [(first, Situation(torch.Generator(device), first.state)) for _ in range(-len(live) % ROWS)]
        chunks, situations = zip(*live, *spare, strict=True)
        plans = self.guidance.act(policy, _stack(chunks, device), situations)[: len(live)]
        actions = self._in_time(plans, [situation for _, situation in live], policy).cpu()
        check_finite(actions, policy)
        for plan, (_, situation) in zip(plans, live, strict=True):
            situation.plan = plan
        return actions.numpy()

    def _in_time(
        self, plans: Float[Tensor, "B T Da"], situations: Sequence[Situation], policy: Policy
    ) -> Float[Tensor, "B Ta Da"]:
        """The actions that are executed. The first `n_late` of them belong to the last plan.

        Raises ValueError if plans are too short for that.
        """
        n_steps, n_late = getattr(policy, "n_action_steps", plans.shape[1]), self.n_late
        if not n_late:
            return plans[:, :n_steps]
        if n_late + n_steps > plans.shape[1]:
            raise ValueError(
                f"n_late={n_late}, but a plan has only {plans.shape[1] - n_steps} actions left after "
                f"n_action_steps={n_steps}: set a smaller n_action_steps"
            )
        last = [plan if s.plan is None else s.plan[n_steps:] for s, plan in zip(situations, plans, strict=True)]
        return torch.cat([torch.stack([plan[:n_late] for plan in last]), plans[:, n_late:n_steps]], dim=1)

    def _max_steps(self, seed: int) -> int:
        return self.max_steps if isinstance(self.max_steps, int) else self.max_steps[seed]


def _check_least(least: int, counts: Mapping[str, int]) -> None:
    for name, value in counts.items():
        if value < least:
            raise ValueError(f"{name}={value}, expected at least {least}")


def _make_episode(
    make_env: Callable[[], Env], n_obs_steps: int, obs_names: Sequence[str] | None, with_state: bool, kick: float
) -> Episode:
    return Episode(make_env(), n_obs_steps, obs_names, with_state, kick)


def _stack(chunks: Sequence[Chunk], device: torch.device) -> Obs:
    names = chunks[0].obs
    return {name: torch.from_numpy(np.stack([c.obs[name] for c in chunks])).to(device) for name in names}


def check_finite(action: Float[Tensor, "*shape"], policy: Policy) -> None:
    """Raises ValueError, naming what sampled them, for actions that are not finite. On a GPU it waits for them."""
    if bool((~torch.isfinite(action)).any()):
        objective = getattr(policy, "objective", policy)
        sampler = type(getattr(objective, "scheduler", objective)).__name__
        n_steps = getattr(objective, "num_inference_steps", None)
        raise ValueError(
            f"{sampler}{f' with num_inference_steps={n_steps}' if n_steps else ''} sampled actions that are not "
            "finite: set another scheduler.num_inference_steps or scheduler. If nothing helps, the weights are damaged"
        )

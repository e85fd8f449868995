"""An expert takes over where a policy's episode stalls: DAgger (Ross et al. 2011) without a person."""

from collections.abc import Generator, Iterable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from dp.processes import in_processes
from dp.rollouts.demonstrator import in_order
from dp.rollouts.runner import EnvRunner, EpisodeResult
from dp.tasks.demonstration import SOLVED, Demonstration, Expert
from dp.types import Policy

Actions = Float[np.ndarray, "_ Da"]


class Takeover:
    """Runs a policy, and lets the task's expert finish the episodes that it does not solve.

    The expert begins in a step at random among those after the best reward: up to there the policy made progress. If it
    cannot finish from there, because the policy has spoilt the scene, it begins in the step of the best reward. What it
    does from there on is a demonstration of its own.

    Args:
        expert: of the task (`Task.expert`); None if it has none.
        n_workers: processes for the expert; 0 lets it work in this one.

    Raises:
        ValueError: without an expert.
    """

    def __init__(self, expert: Expert | None, n_workers: int) -> None:
        if expert is None:
            raise ValueError(
                "this task has no expert that could take over (Task.expert). Collect with collector=checkpoint "
                "instead, if possible with guidance=best_of_n"
            )
        self._expert, self._n_workers = expert, n_workers

    def __call__(
        self, runner: EnvRunner, policy: Policy, device: torch.device, seeds: Iterable[int]
    ) -> Generator[tuple[int, Demonstration | str | None], None, None]:
        """Yields (seed, how the expert finished, or why there is nothing to keep) in the order of `seeds`."""
        stalled = ((e.seed, _until_stalled(e)) for e in in_order(runner, policy, device, seeds))
        for (seed, _), made in in_processes(partial(_finish, self._expert), stalled, self._n_workers):
            yield seed, made


def _until_stalled(episode: EpisodeResult) -> list[Actions]:
    """The actions up to a step after which nothing became better, and those up to the best; none if it was solved."""
    if episode.success:
        return []
    best = int(np.argmax(episode.rewards))
    step = int(np.random.default_rng(episode.seed).integers(best, len(episode.actions)))
    return [np.stack(episode.actions[: last + 1]) for last in dict.fromkeys((step, best))]


def _finish(expert: Expert, stalled: tuple[int, Sequence[Actions]]) -> Demonstration | str | None:
    seed, beginnings = stalled
    if not beginnings:
        return SOLVED
    finished = (expert(seed, actions) for actions in beginnings)
    return next((made for made in finished if made is not None), None)

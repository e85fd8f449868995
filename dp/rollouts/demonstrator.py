"""A trained policy as a demonstrator."""

import itertools
from collections.abc import Callable, Generator, Iterable

import torch

from dp.rollouts.runner import EnvRunner, EpisodeResult
from dp.tasks.demonstration import Demonstration, Recording
from dp.types import Policy


def rollouts(
    runner: EnvRunner, policy: Policy, device: torch.device, seeds: Iterable[int], record: Callable[[int], Recording]
) -> Generator[tuple[int, Demonstration], None, None]:
    """Yields (seed, what the policy did from there) in the order of `seeds`, which may have no end.

    The actions run once more under `record`, which begins a recording from a seed.
    """
    for episode in in_order(runner, policy, device, seeds):
        recording = record(episode.seed)
        for action in episode.actions:
            recording.step(action)
        yield episode.seed, recording.demonstration()


def in_order(
    runner: EnvRunner, policy: Policy, device: torch.device, seeds: Iterable[int]
) -> Generator[EpisodeResult, None, None]:
    """Yields episodes in the order of `seeds`. The runner denoises many of them in one batch."""
    started, ordered = itertools.tee(seeds)
    due, ended = next(ordered, None), {}
    for episode in runner.stream(policy, device, started):
        ended[episode.seed] = episode
        while due in ended:
            yield ended.pop(due)
            due = next(ordered, None)

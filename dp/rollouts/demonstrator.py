"""A trained policy as a demonstrator."""

import itertools
from collections.abc import Callable, Generator, Iterable

import torch

from dp.rollouts.runner import EnvRunner
from dp.tasks.demonstration import Demonstration, Recording
from dp.types import Policy


def rollouts(
    runner: EnvRunner, policy: Policy, device: torch.device, record: Callable[[int], Recording], seeds: Iterable[int]
) -> Generator[tuple[int, Demonstration], None, None]:
    """Yields (seed, what the policy did from there) in the order of `seeds`, which may have no end.

    The runner denoises many episodes in one batch. Their actions run once more under `record`, which begins a recording
    from a seed.
    """
    started, ordered = itertools.tee(seeds)
    due, ended = next(ordered, None), {}
    for episode in runner.stream(policy, device, started):
        ended[episode.seed] = episode
        while due in ended:
            recording = record(due)
            for action in ended.pop(due).actions:
                recording.step(action)
            yield due, recording.demonstration()
            due = next(ordered, None)

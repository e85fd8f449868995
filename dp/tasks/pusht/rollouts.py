"""A trained policy as a demonstrator."""

import itertools
from collections.abc import Generator, Iterable

import torch

from dp.rollouts.runner import EnvRunner
from dp.tasks.pusht.demonstration import Demonstration, Recorder
from dp.tasks.pusht.env import PushTEnv
from dp.types import Policy


def rollouts(
    runner: EnvRunner, policy: Policy, device: torch.device, seeds: Iterable[int]
) -> Generator[tuple[int, Demonstration], None, None]:
    """Yields (seed, what the policy did from there) in the order of `seeds`, which may have no end.

    The runner denoises many episodes in one batch; what they executed is then recorded once more, state by state.
    """
    env = PushTEnv([])
    started, ordered = itertools.tee(seeds)
    due, ended = next(ordered, None), {}
    for episode in runner.stream(policy, device, started):
        ended[episode.seed] = episode
        while due in ended:
            recorder = Recorder(due, env)
            for action in ended.pop(due).actions:
                recorder.step(action)
            yield due, recorder.demonstration()
            due = next(ordered, None)

"""Policies without a network. Their scores test the environment, the seeds and the metrics."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from dp.types import Batch, Generator, Obs


class DoNothing:
    """Does as little as possible: the score of the initial states.

    Args:
        idle: observations -> the action (B, Da) that changes nothing (`Task.idle`).
        n_action_steps: Ta.
    """

    def __init__(self, idle: Callable[[Obs], Tensor], n_action_steps: int) -> None:
        self.idle, self.n_action_steps = idle, n_action_steps

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        raise NotImplementedError("a baseline does not learn")

    def act(self, obs: Obs, generator: Generator = None) -> Float[Tensor, "B Ta Da"]:
        return self.idle(obs)[:, None].repeat(1, self.n_action_steps, 1)


class Replay:
    """Plays the actions of demonstrations open loop, and repeats the last one.

    Args:
        actions: seed of the initial state -> (T, Da), raw.
        n_action_steps: Ta.

    An episode is known by its generator, which the runner seeds with the episode's seed.
    """

    def __init__(self, actions: Mapping[int, Float[Tensor, "T Da"]], n_action_steps: int) -> None:
        self.actions, self.n_action_steps = actions, n_action_steps
        self._played: dict[int, int] = {}

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        raise NotImplementedError("a baseline does not learn")

    def act(self, obs: Obs, generator: Generator = None) -> Float[Tensor, "B Ta Da"]:
        generators = generator if isinstance(generator, list) else [generator]
        return torch.stack([self._next(g.initial_seed() if g else 0) for g in generators])

    def _next(self, seed: int) -> Float[Tensor, "Ta Da"]:
        actions = self.actions.get(seed)
        if actions is None:  # a row that only fills the batch
            return torch.zeros(self.n_action_steps, next(iter(self.actions.values())).shape[1])
        start = self._played.get(seed, 0)
        self._played[seed] = start + self.n_action_steps
        steps = torch.arange(start, start + self.n_action_steps).clamp(max=len(actions) - 1)
        return actions[steps]

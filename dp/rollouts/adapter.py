"""Anybody's policy under our protocols: `act(obs) -> chunk` is enough."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dp.types import Batch, Generator, Obs


@runtime_checkable
class Acting(Protocol):
    """What a policy needs so that it can be evaluated.

    `reset(seed)` is optional. A policy that has it may remember what it saw, and draw random numbers: it gets one
    episode at a time (B = 1), and `reset` with the episode's seed before each. Without it, a policy gets many episodes
    in one batch, whose order and size it must not depend on.
    """

    def act(self, obs: dict[str, np.ndarray]) -> Float[np.ndarray, "B T Da"]:
        """Name -> the last To observations (B, To, ...), raw: images uint8 (B, To, Y, X, 3), everything else float32.
        Returns the next T actions, raw, of which the first Ta are executed. An array or a tensor on the CPU."""


class PolicyAdapter:
    """Shows anybody's policy to the runner as a `dp.types.Policy`.

    Args:
        policy: an `Acting`, perhaps with `reset(seed)`.
        action_dim: Da.
        n_action_steps: Ta; None: all actions of a chunk.

    Raises:
        ValueError: if there is no `act`.
    """

    def __init__(self, policy: Any, action_dim: int, n_action_steps: int | None = None) -> None:
        if not isinstance(policy, Acting):
            raise ValueError(f"policy={type(policy).__name__} has no method act(obs), which returns (B, T, Da) actions")
        self.policy, self.action_dim = policy, action_dim
        self._reset = getattr(policy, "reset", None)
        self.one_at_a_time = self._reset is not None
        if n_action_steps is not None:
            self.n_action_steps = n_action_steps
        self._episode: torch.Generator | None = None  # each episode has its own

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        raise NotImplementedError("a policy of somebody else does not learn here")

    def act(self, obs: Obs, generator: Generator = None) -> Float[Tensor, "B T Da"]:
        """Raises ValueError, naming the method, if the policy fails or returns anything but (B, T >= Ta, Da)."""
        n_rows = len(next(iter(obs.values())))
        if not self.one_at_a_time:
            return self._chunk(obs, n_rows).to(_device(obs))
        first = generator[0] if isinstance(generator, list) else generator
        if first is None or first is not self._episode:
            self._episode = first
            # While the latency is measured, torch's own default seed comes, which numpy does not take.
            seed = 0 if first is None else first.initial_seed() % 2**32
            _tried("reset(seed)", self._reset, seed)
        chunk = self._chunk({name: x[:1] for name, x in obs.items()}, 1)
        return chunk.expand(n_rows, -1, -1).to(_device(obs))  # the runner's other rows only fill the batch

    def _chunk(self, obs: Obs, n_rows: int) -> Float[Tensor, "B T Da"]:
        answer = _tried("act(obs)", self.policy.act, {name: x.cpu().numpy() for name, x in obs.items()})
        chunk = torch.as_tensor(_tried("act(obs)", np.asarray, answer)).float()
        least = getattr(self, "n_action_steps", 1)
        shape = tuple(chunk.shape)
        if len(shape) != 3 or (shape[0], shape[2]) != (n_rows, self.action_dim) or shape[1] < least:
            raise ValueError(
                f"the policy's act(obs) returns actions of shape {shape}, expected ({n_rows}, T, {self.action_dim}) "
                f"with T of at least n_action_steps={least}"
            )
        return chunk


def _device(obs: Mapping[str, Tensor]) -> torch.device:
    return next(iter(obs.values())).device


def _tried(what: str, call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        raise ValueError(f"the policy fails in {what}: {type(error).__name__}: {error}") from error

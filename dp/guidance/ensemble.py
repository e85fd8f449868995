"""Temporal ensembling."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor

from dp.types import Obs, Planning, Situation


class Ensemble:
    """Executes the weighted mean of all plans that foresaw a step (Zhao et al. 2023, ACT, algorithm 2).

    A plan's weight is exp(-decay * i), i = 0 for the oldest. Plans reach H - To + 1 steps ahead, so with Ta above half
    of that a mean is taken of two plans at most, and of none in the last steps of a chunk.

    Args:
        decay: 0 weights all plans alike; larger values trust older plans more.
    """

    sees_state = False

    def __init__(self, decay: Annotated[float, Interval(ge=0, le=100)] = 0.01) -> None:
        self.decay = decay

    def act(self, policy: Planning, obs: Obs, situations: Sequence[Situation]) -> Float[Tensor, "B T Da"]:
        plans = policy.plan(policy.encode(obs), [situation.generator for situation in situations])[:, 0]
        return torch.stack([self._mean(*of, policy.n_action_steps) for of in zip(plans, situations, strict=True)])

    def _mean(self, plan: Float[Tensor, "T Da"], situation: Situation, n_executed: int) -> Float[Tensor, "T Da"]:
        earlier = [old[n_executed:] for old in situation.memory.get("plans", [])]  # what has been executed is over
        situation.memory["plans"] = plans = [old for old in earlier if len(old)] + [plan]
        steps = []
        for step in range(len(plan)):
            foreseen = torch.stack([old[step] for old in plans if len(old) > step])
            weights = torch.exp(-self.decay * torch.arange(len(foreseen), device=plan.device, dtype=plan.dtype))
            steps.append((weights / weights.sum()) @ foreseen)
        return torch.stack(steps)

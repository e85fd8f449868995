"""Lets a policy practise and keeps what a critic can learn from it."""

from collections import defaultdict
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from dp.guidance.best_of_n import BestOfN
from dp.types import Critic, Situation


class Decision(NamedTuple):
    """What the policy's encoder saw, the plans to choose among, in raw units, their costs (nan: unknown), and the one
    that was executed."""

    cond: Float[np.ndarray, "To Do"]
    plans: Float[np.ndarray, "n T Da"]
    costs: Float[np.ndarray, " n"]
    chosen: int


class Practice(BestOfN):
    """Records every decision, by episode.

    With the task's own critic it samples `n` plans, and executes the first or the best one. How often it takes the
    first differs from episode to episode, so the decisions cover what the policy does alone and what it does when it
    is guided. Without one it samples and executes one plan, whose cost is not known before the episode ends.
    """

    def __init__(self, n: int, n_action_steps: int, simulator: Callable[[int], Critic] | None) -> None:
        critic: Literal["simulator", "coherence"] = "simulator" if simulator else "coherence"
        super().__init__(n if simulator else 1, critic, n_action_steps=n_action_steps, simulator=simulator)
        self.decisions: dict[int, list[Decision]] = defaultdict(list)
        """Seed of an episode -> its decisions, in their order."""

    def choose(self, plans: Float[np.ndarray, "n T Da"], situation: Situation) -> int:
        seed, chosen = situation.generator.initial_seed(), 0
        costs = np.full(len(plans), np.nan)
        if self.sees_state:
            costs = self.critic.costs(plans, situation)
            rng = situation.memory.setdefault("rng", np.random.default_rng(seed))
            alone = situation.memory.setdefault("alone", rng.random())
            chosen = 0 if rng.random() < alone else int(np.argmin(costs))
        assert situation.cond is not None
        self.decisions[seed].append(Decision(situation.cond.cpu().numpy(), plans, costs, chosen))
        return chosen

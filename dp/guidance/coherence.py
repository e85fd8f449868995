"""A critic that prefers plans which continue the one before."""

from typing import Annotated

import numpy as np
from annotated_types import Interval
from jaxtyping import Float

from dp.types import Situation


class Coherence:
    """Backward coherence of bidirectional decoding (Liu et al. 2024, eq. 5): distance from the rest of the last plan.

    costs = sum over tau of decay^tau * |plan[tau] - last_plan[Ta + tau]|, over the steps that both foresee. Raw units.

    Args:
        n_action_steps: Ta, how many actions of the last plan have been executed.
        decay: weight of each step relative to the one before it.
    """

    def __init__(self, n_action_steps: int, decay: Annotated[float, Interval(gt=0, le=1)] = 0.5) -> None:
        self.n_action_steps, self.decay = n_action_steps, decay

    def costs(self, plans: Float[np.ndarray, "n T Da"], situation: Situation) -> Float[np.ndarray, " n"]:
        """Zero for all at the beginning of an episode."""
        if situation.plan is None:
            return np.zeros(len(plans))
        rest = situation.plan.cpu().numpy()[self.n_action_steps :]
        distances = np.linalg.norm(plans[:, : len(rest)] - rest, axis=-1)
        return np.asarray(distances @ self.decay ** np.arange(len(rest)))

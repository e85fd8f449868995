"""No guidance."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dp.types import Obs, Planning, Policy, Situation


class Unguided:
    """Executes samples of the policy as they are."""

    sees_state = False

    def act(self, policy: Policy, obs: Obs, situations: Sequence[Situation]) -> Float[Tensor, "B T Da"]:
        generators = [situation.generator for situation in situations]
        if isinstance(policy, Planning):
            return policy.plan(policy.encode(obs), generators)[:, 0]
        return policy.act(obs, generators)

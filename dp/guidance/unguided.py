"""No guidance."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from dp.types import Obs, Policy, Situation


class Unguided:
    """Executes what the policy samples."""

    sees_state = False

    def act(self, policy: Policy, obs: Obs, situations: Sequence[Situation]) -> Float[Tensor, "B Ta Da"]:
        return policy.act(obs, [situation.generator for situation in situations])

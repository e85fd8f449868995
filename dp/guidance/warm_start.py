"""Plans that are denoised from the last plan instead of from noise alone."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Interval
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from dp.types import Denoiser, Obs, Situation


class WarmStart:
    """Starts sampling from what is left of the last plan, noised to an intermediate step (SDEdit, Meng et al. 2022).

    The first diffusion steps are answered without the network: by the prediction that leads from the noise to the last
    plan, shifted by the actions executed since, its last action repeated. The network does the remaining steps. So it
    is evaluated less often, and works with every sampler.

    Args:
        share: of the evaluations that are left out. 0 is an ordinary sample; near 1 the last plan is hardly changed.
    """

    sees_state = False

    def __init__(self, share: Annotated[float, Interval(ge=0, lt=1)] = 0.5) -> None:
        self.share = share

    def act(self, policy: Any, obs: Obs, situations: Sequence[Situation]) -> Float[Tensor, "B T Da"]:
        """Takes a policy whose objective has `prediction_for`, such as diffusion. Raises ValueError for any other."""
        if not hasattr(policy.objective, "prediction_for"):
            name = type(policy.objective).__name__
            raise ValueError(
                f"guidance=warm_start needs an objective with the method `prediction_for`, which {name} lacks"
            )
        last, begun = _last_plans(policy, situations)
        n_skipped = int(self.share * policy.objective.num_inference_steps)
        wrap = partial(_Begun, policy.objective.prediction_for, last, begun, n_skipped)
        return policy.plan(policy.encode(obs), [s.generator for s in situations], wrap=wrap)[:, 0]


def _last_plans(policy: Any, situations: Sequence[Situation]) -> tuple[Float[Tensor, "B H Da"], Bool[Tensor, "B 1 1"]]:
    """The rest of each last plan over a whole window, normalised, and whether there was one."""
    last = torch.zeros(len(situations), policy.horizon, policy.action_dim, device=policy.device)
    begun = torch.zeros(len(situations), 1, 1, dtype=torch.bool)
    steps = torch.arange(policy.horizon) - (policy.n_obs_steps - 1) + policy.n_action_steps
    for row, situation in enumerate(situations):
        if situation.plan is not None:
            plan = situation.plan[steps.clamp(0, len(situation.plan) - 1)]
            last[row], begun[row] = policy.normalizer.normalize("action", plan), True
    return last, begun


class _Begun:
    """A denoiser whose first evaluations lead to the last plan, in rows that have one."""

    def __init__(self, answer: Any, last: Tensor, begun: Tensor, n_skipped: int, denoiser: Denoiser) -> None:
        self._answer, self._last, self._denoiser = answer, last, denoiser
        self._begun, self._all, self._n_left = begun.to(last.device), bool(begun.all()), n_skipped

    def __call__(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B n"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]:
        self._n_left -= 1
        if self._n_left < 0:
            return self._denoiser(x, t, cond)
        answer = self._answer(x, self._last, t)
        return answer if self._all else torch.where(self._begun, answer, self._denoiser(x, t, cond))

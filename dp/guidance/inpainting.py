"""Plans that begin with the actions that are already under way."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from dp.limits import Count
from dp.types import Denoiser, Obs, Situation

log = logging.getLogger(__name__)


class Inpainting:
    """Fixes the first actions of a plan to those of the last plan that will be executed before it arrives.

    Real-time chunking (Black et al. 2025) with in-painting as in RePaint (Lugmayr et al. 2022): at every diffusion step
    the denoiser sees the known actions, at the noise level of that step, and completes the rest.

    Args:
        n_late: actions of the last plan that are executed before the first one of a new plan (`env_runner.n_late`).
            With 0, nothing is known and the plan is an ordinary sample.
    """

    sees_state = False

    def __init__(self, n_late: Count) -> None:
        if not n_late:
            log.warning("guidance=inpainting changes nothing here: no action is late (env_runner.n_late=0)")
        self.n_late = n_late

    def act(self, policy: Any, obs: Obs, situations: Sequence[Situation]) -> Float[Tensor, "B T Da"]:
        """Takes a policy whose objective has `noisy`, such as diffusion. Raises ValueError for any other."""
        if not hasattr(policy.objective, "noisy"):
            name = type(policy.objective).__name__
            raise ValueError(f"guidance=inpainting needs an objective with the method `noisy`, which {name} lacks")
        cond, generators = policy.encode(obs), [situation.generator for situation in situations]
        known, mask = self._known(policy, situations)
        noise = torch.zeros_like(known)
        begun = mask.any(1)[:, 0]
        for row in torch.nonzero(begun).flatten().tolist():  # the other rows draw as if unguided
            noise[row] = torch.randn(known.shape[1:], generator=generators[row], device=known.device)
        wrap = partial(_Inpainted, policy.objective.noisy, known, noise, mask)
        plans = policy.plan(cond, generators, wrap=wrap)[:, 0]
        first, now = slice(policy.n_obs_steps - 1, None), policy.normalizer.unnormalize("action", known)
        return torch.where(mask[:, first], now[:, first], plans)

    def _known(
        self, policy: Any, situations: Sequence[Situation]
    ) -> tuple[Float[Tensor, "B H Da"], Bool[Tensor, "B H 1"]]:
        """The known actions, normalised, and where they are."""
        known = torch.zeros(len(situations), policy.horizon, policy.action_dim, device=policy.device)
        mask = torch.zeros(len(situations), policy.horizon, 1, dtype=torch.bool, device=policy.device)
        begin, n_executed = policy.n_obs_steps - 1, policy.n_action_steps
        for row, situation in enumerate(situations):
            if situation.plan is not None:
                rest = situation.plan[n_executed : n_executed + self.n_late]
                known[row, begin : begin + len(rest)] = policy.normalizer.normalize("action", rest)
                mask[row, begin : begin + len(rest)] = True
        return known, mask


class _Inpainted:
    """A denoiser that sees the known actions, as noisy as the others."""

    def __init__(self, noisy: Any, known: Tensor, noise: Tensor, mask: Tensor, denoiser: Denoiser) -> None:
        self._noisy, self._known, self._noise, self._mask, self._denoiser = noisy, known, noise, mask, denoiser

    def __call__(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B n"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]:
        return self._denoiser(torch.where(self._mask, self._noisy(self._known, self._noise, t), x), t, cond)

"""Consistency models (Song et al. 2023): actions in one evaluation, or better ones in a few."""

from typing import Annotated, Any

import torch
from annotated_types import Interval
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor, nn

from dp.limits import Size
from dp.objectives.edm import Preconditioned, noise_levels
from dp.types import Denoiser, Generator

HUBER = 0.00054
"""Width of the pseudo-Huber loss, for an action of one number (Song and Dhariwal 2024, section 3.3)."""


class Consistency(Preconditioned):
    """Predicts the action at the end of the path of noise levels on which a noisy action lies.

    Neighbouring levels of a path shall give the same action, and the lowest one gives itself. Both are made with the
    same noise (consistency training, as improved by Song and Dhariwal 2024). With a teacher, which steps from the upper
    to the lower one, it is consistency distillation. The target's weights are those of the step.

    Args:
        num_inference_steps: evaluations of the denoiser for one sample. Each but the last is noised again.
        n_levels: of noise, spaced as in EDM.
        sigma_min, sigma_max, sigma_data, rho, time_scale: as for `dp.objectives.EDM`.
        p_mean, p_std: of log(sigma) in training.
        distil: whether the policy that training begins from (`init_from`) is the teacher.

    Raises:
        ValueError: for more evaluations than levels.
    """

    def __init__(
        self,
        num_inference_steps: int,
        n_levels: Annotated[int, Interval(ge=2, le=10_000)] = 40,
        sigma_min: Size = 0.01,
        sigma_max: Size = 20.0,
        sigma_data: Size = 0.5,
        rho: Annotated[float, Interval(ge=1, le=100)] = 7.0,
        p_mean: Annotated[float, Interval(ge=-20, le=20)] = -1.1,
        p_std: Annotated[float, Interval(gt=0, le=10)] = 2.0,
        time_scale: Size = 100.0,
        distil: bool = False,
    ) -> None:
        super().__init__(sigma_data, sigma_min, time_scale)
        if not num_inference_steps < n_levels:
            raise ValueError(f"num_inference_steps={num_inference_steps}, expected fewer than n_levels={n_levels}")
        self.num_inference_steps, self.distil = num_inference_steps, distil
        sigmas = torch.from_numpy(noise_levels(sigma_min, sigma_max, n_levels, rho))
        self.register_buffer("sigmas", sigmas.float(), persistent=False)
        below = torch.special.ndtr((sigmas.log() - p_mean) / p_std)
        self.register_buffer("shares", ((below - below[0]) / (below[-1] - below[0])).float(), persistent=False)
        self._teacher: list[tuple[Any, Denoiser]] = []  # in a list, so that it is no part of this module's state

    def teach_with(self, objective: Any, denoiser: nn.Module) -> None:
        """Makes a policy the teacher. `objective` has the method `denoised`, as `Diffusion` and `EDM` have.

        Its condition then stays as it is, for that is what the teacher knows: no gradient reaches the encoder.
        """
        self._teacher = [(objective, denoiser.eval().requires_grad_(False))]

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Pseudo-Huber distance of the actions that two neighbouring levels give (Song and Dhariwal 2024, eq. 9)."""
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        u = torch.rand(len(action), generator=generator, device=action.device)
        level = torch.bucketize(u, self.get_buffer("shares")[1:-1])
        lower, upper = (self.get_buffer("sigmas")[level + n][:, None, None] for n in (0, 1))
        x = action + upper * noise
        with torch.no_grad():
            below = action + lower * noise
            for objective, teacher in self._teacher:
                cond = cond.detach()
                known = objective.denoised(teacher, x, upper, cond)
                below = known + lower / upper * (x - known)
            target = self.denoised(denoiser, below, lower, cond)
        error = (self.denoised(denoiser, x, upper, cond).float() - target).square().sum((1, 2))
        c = HUBER * action[0].numel() ** 0.5
        return (((error + c**2).sqrt() - c) / (upper - lower)[:, 0, 0]).mean()

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]:
        """From noise to actions, and from noisy actions again (Song et al. 2023, algorithm 1)."""
        sigmas, n = self.get_buffer("sigmas"), self.num_inference_steps
        levels = [round((len(sigmas) - 1) * (n - i) / n) for i in range(n)]
        x = sigmas[levels[0]] * noise
        for number, level in enumerate(levels):
            sigma = sigmas[level].expand(len(x), 1, 1)
            if number:
                fresh = randn_tensor(x.shape, generator=generator, device=x.device)
                x = x + (sigma.square() - sigmas[0].square()).sqrt() * fresh
            x = self.denoised(denoiser, x, sigma, cond)
        return x

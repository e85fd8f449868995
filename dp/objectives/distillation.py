"""Consistency distillation (Song et al. 2023): a diffusion policy learns to act in one evaluation, or a few."""

from typing import Annotated, Any

import torch
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn

from dp.limits import Size
from dp.objectives.consistency import ConsistencyFunction, Levels
from dp.objectives.diffusion import Diffusion
from dp.types import Denoiser, Objective


class Distillation(ConsistencyFunction):
    """Learns the ends of the paths on which a diffusion policy, the teacher, steps from noise to action.

    The denoiser predicts what the teacher's predicts, at the teacher's noise levels, so the student begins with the
    teacher's own answers (Luo et al. 2023, "Latent Consistency Models"). Between two levels the teacher makes a step
    of DDIM (Song et al. 2023, algorithm 2).

    Args:
        scheduler: with the teacher's noise schedule and `prediction_type`.
        num_inference_steps: evaluations of the denoiser for one sample. Each but the last is noised again.
        n_levels: of noise, of which the schedule has `num_train_timesteps`.
        sigma_max: the highest level is at most this. At higher ones, the error of a denoiser that predicts the noise is
            multiplied.
        p_mean, p_std: of log(sigma) in training.

    Raises:
        ValueError: for a scheduler that `Diffusion` refuses; for as many evaluations as levels, or more.
    """

    def __init__(
        self,
        scheduler: Any,
        num_inference_steps: int,
        n_levels: Levels = 25,
        sigma_max: Size = 7.0,
        p_mean: Annotated[float, Interval(ge=-20, le=20)] = -1.1,
        p_std: Annotated[float, Interval(gt=0, le=10)] = 2.0,
    ) -> None:
        reads = Diffusion(scheduler, len(getattr(scheduler, "alphas_cumprod", "?")))
        known = ((1 - reads.alphas_cumprod) / reads.alphas_cumprod).sqrt().double()
        usable = known[known <= sigma_max]
        chosen = torch.linspace(0, len(usable) - 1, min(n_levels, len(usable))).round().long()
        super().__init__(reads, num_inference_steps, usable[chosen], p_mean, p_std)
        self._teacher: list[Denoiser] = []  # in a list, so that it is no part of this module's state

    def teach_with(self, objective: Objective, denoiser: nn.Module) -> None:
        """Makes a policy the teacher. Raises ValueError unless its objective is diffusion with this noise schedule."""
        if not isinstance(objective, Diffusion):
            raise ValueError(f"its objective is {type(objective).__name__}, expected Diffusion")
        theirs, own = objective, self.reads
        if theirs.prediction_type != own.prediction_type:
            raise ValueError(
                f"it predicts {theirs.prediction_type}: set scheduler.prediction_type={theirs.prediction_type}"
            )
        n, n_own = len(theirs.alphas_cumprod), len(own.alphas_cumprod)
        if n != n_own:
            raise ValueError(f"it has {n} diffusion steps, not {n_own}: set scheduler.num_train_timesteps={n}")
        if not torch.allclose(theirs.alphas_cumprod.cpu(), own.alphas_cumprod.cpu()):
            raise ValueError(
                "it has another noise schedule: set scheduler.beta_schedule, beta_start and beta_end to its"
            )
        self._teacher = [denoiser.eval().requires_grad_(False)]  # type: ignore[list-item]

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """As in consistency training. The condition stays what the teacher knows: no gradient reaches the encoder."""
        return super().loss(denoiser, action, cond.detach(), generator)

    def below(
        self, action: Tensor, noise: Tensor, lower: Tensor, upper: Tensor, cond: Tensor
    ) -> Float[Tensor, "B H Da"]:
        """By the teacher's step, clipped as its sampler does. In validation, which has no teacher, by the noise."""
        if not self._teacher:
            return action + lower * noise
        x = action + upper * noise
        found = self.reads.denoised(self._teacher[0], x, upper, cond).clamp(-1, 1)
        return found + lower / upper * (x - found)

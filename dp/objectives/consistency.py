"""Consistency models (Song et al. 2023): actions in one evaluation, or better ones in a few."""

from typing import Annotated, Any

import torch
from annotated_types import Interval
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor, nn

from dp.distributed import draw
from dp.limits import Size
from dp.objectives.edm import Preconditioned, noise_levels
from dp.types import Denoiser, Generator

HUBER = 0.00054
"""Width of the pseudo-Huber loss, for an action of one number (Song and Dhariwal 2024, section 3.3)."""

Levels = Annotated[int, Interval(ge=2, le=10_000)]


class ConsistencyFunction(nn.Module):
    """Predicts the action at the end of the path of noise levels on which a noisy action lies.

    Neighbouring levels of a path shall give the same action, and the lowest one gives itself. Noisy actions are
    action + sigma * noise. The target's weights are those of the step.

    Args:
        reads: an objective whose method `denoised` says which action the denoiser finds in a noisy one.
        num_inference_steps: evaluations of the denoiser for one sample. Each but the last is noised again.
        sigmas: the noise levels, rising.
        p_mean, p_std: of log(sigma) in training.

    Raises:
        ValueError: for as many evaluations as levels, or more.
    """

    n_times = 1
    reads: Any
    sigmas: Tensor
    shares: Tensor

    def __init__(
        self, reads: nn.Module, num_inference_steps: int, sigmas: Float[Tensor, " n"], p_mean: float, p_std: float
    ) -> None:
        super().__init__()
        if not num_inference_steps < len(sigmas):
            raise ValueError(f"num_inference_steps={num_inference_steps}, expected fewer than n_levels={len(sigmas)}")
        self.reads, self.num_inference_steps = reads, num_inference_steps
        self.register_buffer("sigmas", sigmas.float(), persistent=False)
        below = torch.special.ndtr((sigmas.log() - p_mean) / p_std)
        self.register_buffer("shares", ((below - below[0]) / (below[-1] - below[0])).float(), persistent=False)

    def denoised(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B H Da"],
        sigma: Float[Tensor, "B 1 1"],
        cond: Float[Tensor, "B To Do"],
    ) -> Float[Tensor, "B H Da"]:
        """The action at the end of the path: at the lowest level `x`, far above it what the denoiser finds."""
        share = (self.sigmas[0] / sigma).square()
        return share * x + (1 - share) * self.reads.denoised(denoiser, x, sigma, cond)

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Pseudo-Huber distance of the actions that two neighbouring levels give (Song and Dhariwal 2024, eq. 9)."""
        noise = draw(torch.randn, action.shape, generator=generator, device=action.device)
        u = draw(torch.rand, (len(action),), generator=generator, device=action.device)
        level = torch.bucketize(u, self.shares[1:-1])
        lower, upper = (self.sigmas[level + n][:, None, None] for n in (0, 1))
        x = action + upper * noise
        with torch.no_grad():
            target = self.denoised(denoiser, self.below(action, noise, lower, upper, cond), lower, cond)
        error = (self.denoised(denoiser, x, upper, cond).float() - target).square().sum((1, 2))
        c = HUBER * action[0].numel() ** 0.5
        return (((error + c**2).sqrt() - c) / (upper - lower)[:, 0, 0]).mean()

    def below(
        self, action: Tensor, noise: Tensor, lower: Tensor, upper: Tensor, cond: Tensor
    ) -> Float[Tensor, "B H Da"]:
        """The point at the level `lower` of the path through action + upper * noise."""
        raise NotImplementedError

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]:
        """From noise to actions, and from noisy actions again (Song et al. 2023, algorithm 1)."""
        sigmas, n = self.sigmas, self.num_inference_steps
        levels = [round((len(sigmas) - 1) * (n - i) / n) for i in range(n)]
        x = sigmas[levels[0]] * noise
        for number, level in enumerate(levels):
            sigma = sigmas[level].expand(len(x), 1, 1)
            if number:
                fresh = randn_tensor(x.shape, generator=generator, device=x.device)
                x = x + (sigma.square() - sigmas[0].square()).sqrt() * fresh
            x = self.denoised(denoiser, x, sigma, cond)
        return x


class Consistency(ConsistencyFunction):
    """Consistency training, as improved by Song and Dhariwal (2024): without a teacher, neighbouring levels have the
    same noise.

    Args:
        num_inference_steps: evaluations of the denoiser for one sample. Each but the last is noised again.
        n_levels: of noise, spaced as in EDM.
        sigma_min, sigma_max, sigma_data, rho, time_scale: as for `dp.objectives.EDM`.
        p_mean, p_std: of log(sigma) in training.

    Raises:
        ValueError: for as many evaluations as levels, or more.
    """

    def __init__(
        self,
        num_inference_steps: int,
        n_levels: Levels = 40,
        sigma_min: Size = 0.01,
        sigma_max: Size = 20.0,
        sigma_data: Size = 0.5,
        rho: Annotated[float, Interval(ge=1, le=100)] = 7.0,
        p_mean: Annotated[float, Interval(ge=-20, le=20)] = -1.1,
        p_std: Annotated[float, Interval(gt=0, le=10)] = 2.0,
        time_scale: Size = 100.0,
    ) -> None:
        sigmas = torch.from_numpy(noise_levels(sigma_min, sigma_max, n_levels, rho))
        super().__init__(Preconditioned(sigma_data, time_scale), num_inference_steps, sigmas, p_mean, p_std)

    def below(
        self, action: Tensor, noise: Tensor, lower: Tensor, upper: Tensor, cond: Tensor
    ) -> Float[Tensor, "B H Da"]:
        return action + lower * noise

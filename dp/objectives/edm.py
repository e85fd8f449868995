"""Diffusion with the noise levels and the preconditioning of EDM (Karras et al. 2022)."""

import math
from typing import Annotated

import numpy as np
import torch
from annotated_types import Interval
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dp.distributed import draw
from dp.limits import Size
from dp.types import Denoiser, Generator


class Preconditioned(nn.Module):
    """A denoiser whose inputs and outputs have unit variance at every noise level sigma (Karras et al. 2022, table 1).

    Noisy actions are action + sigma * noise.

    Args:
        sigma_data: standard deviation of normalised actions.
        time_scale: the denoiser gets log(sigma) / 4 times this.
    """

    n_times = 1

    def __init__(self, sigma_data: float, time_scale: float) -> None:
        super().__init__()
        self.sigma_data, self.time_scale = sigma_data, time_scale

    def denoised(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B H Da"],
        sigma: Float[Tensor, "B 1 1"],
        cond: Float[Tensor, "B To Do"],
    ) -> Float[Tensor, "B H Da"]:
        """The action that the denoiser finds in `x` (eq. 7)."""
        skip, out, into = self.scales(sigma)
        return skip * x + out * denoiser(into * x, self.time_of(sigma), cond)

    def scales(self, sigma: Float[Tensor, "B 1 1"]) -> tuple[Tensor, Tensor, Tensor]:
        """Scales of the skip connection, of the denoiser's output and of its input."""
        norm = (sigma.square() + self.sigma_data**2).sqrt()
        return (self.sigma_data / norm).square(), self.sigma_data * sigma / norm, 1 / norm

    def time_of(self, sigma: Float[Tensor, "B 1 1"]) -> Float[Tensor, "B 1"]:
        """The time that the denoiser gets."""
        return self.time_scale / 4 * sigma[..., 0].log()

    def sigma_of(self, t: Shaped[Tensor, "B 1"]) -> Float[Tensor, "B 1 1"]:
        """The noise level of a time."""
        return (4 / self.time_scale * t[..., None]).exp()

    def noisy(
        self, action: Float[Tensor, "B H Da"], noise: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B 1"]
    ) -> Float[Tensor, "B H Da"]:
        """The input of the denoiser at its time `t` that belongs to `action`."""
        sigma = self.sigma_of(t)
        return self.scales(sigma)[2] * (action + sigma * noise)

    def prediction_for(
        self, x: Float[Tensor, "B H Da"], action: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B 1"]
    ) -> Float[Tensor, "B H Da"]:
        """The output of a denoiser that recognises `action` in its input `x` at its time `t`."""
        skip, out, into = self.scales(self.sigma_of(t))
        return (action - skip / into * x) / out


def noise_levels(sigma_min: float, sigma_max: float, n: int, rho: float) -> Float[np.ndarray, " n"]:
    """n noise levels, the smallest first (eq. 5). The larger rho, the more of them are small.

    Raises ValueError unless `sigma_min` is below `sigma_max`.
    """
    if not sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, expected a noise level below sigma_max={sigma_max}")
    return np.linspace(sigma_min ** (1 / rho), sigma_max ** (1 / rho), n) ** rho


class EDM(Preconditioned):
    """Predicts the mean action at every noise level, and samples by DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    Heun's method of Karras et al. takes two evaluations for a step, and fails with few steps.

    Args:
        num_inference_steps: evaluations of the denoiser for one sample.
        sigma_min, sigma_max: noise levels of sampling.
        sigma_data: standard deviation of normalised actions.
        rho: larger values spend more steps on little noise.
        p_mean, p_std: of log(sigma) in training.
        time_scale: the denoiser gets log(sigma) / 4 times this.
    """

    def __init__(
        self,
        num_inference_steps: int,
        sigma_min: Size = 0.01,
        sigma_max: Size = 20.0,
        sigma_data: Size = 0.5,
        rho: Annotated[float, Interval(ge=1, le=100)] = 7.0,
        p_mean: Annotated[float, Interval(ge=-20, le=20)] = -1.2,
        p_std: Annotated[float, Interval(gt=0, le=10)] = 1.2,
        time_scale: Size = 100.0,
    ) -> None:
        super().__init__(sigma_data, time_scale)
        self.num_inference_steps, self.p_mean, self.p_std = num_inference_steps, p_mean, p_std
        self.sigmas = noise_levels(sigma_min, sigma_max, num_inference_steps, rho)[::-1].tolist()

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the denoiser's own output, which weighs all noise levels alike (eq. 8)."""
        noise = draw(torch.randn, action.shape, generator=generator, device=action.device)
        log_sigma = draw(torch.randn, (len(action), 1, 1), generator=generator, device=action.device)
        sigma = (self.p_mean + self.p_std * log_sigma).exp()
        x = action + sigma * noise
        skip, out, into = self.scales(sigma)
        prediction = denoiser(into * x, self.time_of(sigma), cond)
        return (prediction.float() - (action - skip * x) / out).square().mean()

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]:
        """From noise to actions, without further random numbers."""
        x, last = self.sigmas[0] * noise, None
        for sigma, following in zip(self.sigmas, [*self.sigmas[1:], 0.0], strict=True):
            level = torch.full((len(x), 1, 1), sigma, device=x.device)
            action = aim = self.denoised(denoiser, x, level, cond)
            if following:
                log_ratio = math.log(sigma / following)
                if last is not None:
                    aim = action + log_ratio / last[1] / 2 * (action - last[0])
                last = action, log_ratio
            x = aim + following / sigma * (x - aim)
        return x

"""Regression: the same network without a generative model, and with a second pass (minimal iterative policy)."""

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Interval
from jaxtyping import Float
from torch import Tensor, nn

from dp.distributed import draw
from dp.limits import Size
from dp.types import Denoiser, Generator


class Regression(nn.Module):
    """Predicts the mean action in one pass: the baseline that shows what a generative model is worth.

    The network gets zeros instead of a noisy action, and time 0. Several ways to act are averaged.
    """

    n_times = 1
    num_inference_steps = 1

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the actions."""
        return F.mse_loss(_predicted(denoiser, torch.zeros_like(action), 0.0, cond).float(), action)

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]:
        """The prediction; `noise` only says its shape."""
        return _predicted(denoiser, torch.zeros_like(noise), 0.0, cond)


class MinimalIterative(nn.Module):
    """Predicts the mean action, and once more from near there (MIP, Pan et al. 2025, "Much Ado About Noising").

    Args:
        t: of the second pass, which is trained to find `action` in t * action + (1 - t) * noise.
        time_scale: the denoiser gets t times this.
    """

    n_times = 1
    num_inference_steps = 2

    def __init__(self, t: Annotated[float, Interval(gt=0, lt=1)] = 0.9, time_scale: Size = 100.0) -> None:
        super().__init__()
        self.t, self.time_scale = t, time_scale

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Sum of the mean squared errors of both passes."""
        noise = draw(torch.randn, action.shape, generator=generator, device=action.device)
        near = self.t * action + (1 - self.t) * noise
        first = _predicted(denoiser, torch.zeros_like(action), 0.0, cond)
        second = _predicted(denoiser, near, self.time_scale * self.t, cond)
        return F.mse_loss(first.float(), action) + F.mse_loss(second.float(), action)

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]:
        """Both passes, without random numbers; `noise` only says their shape."""
        first = _predicted(denoiser, torch.zeros_like(noise), 0.0, cond)
        return _predicted(denoiser, self.t * first, self.time_scale * self.t, cond)


def _predicted(
    denoiser: Denoiser, x: Float[Tensor, "B H Da"], t: float, cond: Float[Tensor, "B To Do"]
) -> Float[Tensor, "B H Da"]:
    return denoiser(x, torch.full((len(x), 1), t, device=x.device), cond)

"""Flow matching (Lipman et al. 2023) along straight paths, also called rectified flow (Liu et al. 2023)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dp.distributed import draw
from dp.limits import Size
from dp.types import Denoiser, Generator

TimeSampling = Literal["uniform", "logit_normal", "beta"]


class Flow(nn.Module):
    """Predicts the velocity `action - noise` of the path x = t * action + (1 - t) * noise, and integrates it.

    Args:
        num_inference_steps: evaluations of the denoiser for one sample.
        solver: "euler"; or of second order, with two evaluations for a step: "midpoint", or "heun", whose last step is
            one of Euler's.
        time_sampling: how training draws t. "uniform"; "logit_normal" (Esser et al. 2024, section 3.1) prefers the
            middle; "beta" (Black et al. 2024, appendix B) prefers noise.
        time_scale: the denoiser gets t times this, by default in the range of a hundred diffusion steps.

    Raises:
        ValueError: for a single evaluation with solver=midpoint.
    """

    n_times = 1

    def __init__(
        self,
        num_inference_steps: int,
        solver: Literal["euler", "midpoint", "heun"] = "euler",
        time_sampling: TimeSampling = "uniform",
        time_scale: Size = 100.0,
    ) -> None:
        super().__init__()
        self.num_inference_steps, self.solver = num_inference_steps, solver
        self.time_sampling, self.time_scale = time_sampling, time_scale
        self.n_steps = {
            "euler": num_inference_steps,
            "midpoint": num_inference_steps // 2,
            "heun": (num_inference_steps + 1) // 2,
        }[solver]
        if self.n_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps}, expected at least 2 for solver={solver}")

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Mean squared error of the velocity (Lipman et al. 2023, eq. 23)."""
        noise = draw(torch.randn, action.shape, generator=generator, device=action.device)
        t = draw_times(self.time_sampling, len(action), action.device, generator)
        velocity = denoiser(between(action, noise, t), self.time_scale * t, cond)
        return F.mse_loss(velocity.float(), action - noise)

    def noisy(
        self, action: Float[Tensor, "B H Da"], noise: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B 1"]
    ) -> Float[Tensor, "B H Da"]:
        """The input of the denoiser at its time `t` that belongs to `action`."""
        return between(action, noise, t / self.time_scale)

    def prediction_for(
        self, x: Float[Tensor, "B H Da"], action: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B 1"]
    ) -> Float[Tensor, "B H Da"]:
        """The output of a denoiser that recognises `action` in `x` at its time `t`."""
        return (action - x) / (1 - t[..., None] / self.time_scale)

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]:
        """From noise to actions along the velocity, without further random numbers."""
        x, dt = noise, 1 / self.n_steps

        def velocity(x: Tensor, t: float) -> Tensor:
            return denoiser(x, torch.full((len(x), 1), self.time_scale * t, device=x.device), cond)

        for step in range(self.n_steps):
            t = step * dt
            first = velocity(x, t)
            if self.solver == "euler" or (self.solver == "heun" and step == self.n_steps - 1):
                x = x + dt * first
            elif self.solver == "midpoint":
                x = x + dt * velocity(x + dt / 2 * first, t + dt / 2)
            else:
                x = x + dt / 2 * (first + velocity(x + dt * first, t + dt))
        return x


def between(
    action: Float[Tensor, "B H Da"], noise: Float[Tensor, "B H Da"], t: Float[Tensor, "B 1"]
) -> Float[Tensor, "B H Da"]:
    """The point at time t of the straight path from noise (0) to action (1)."""
    return t[..., None] * action + (1 - t[..., None]) * noise


def draw_times(
    how: TimeSampling,
    n: int,
    device: torch.device,
    generator: torch.Generator | None,
) -> Float[Tensor, "n 1"]:
    """Random times, 0 of noise and 1 of actions."""
    if how == "logit_normal":
        return draw(torch.randn, (n, 1), generator=generator, device=device).sigmoid()
    u = draw(torch.rand, (n, 1), generator=generator, device=device)
    return u if how == "uniform" else 0.999 * (1 - u ** (1 / 1.5))  # by the inverse of Beta(1.5, 1)

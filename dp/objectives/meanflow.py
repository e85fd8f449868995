"""Mean flows (Geng et al. 2025): the mean velocity of a path, learned from its own derivative."""

import torch
from jaxtyping import Float
from torch import Tensor

from dp.distributed import draw
from dp.limits import Rate, Share, Size
from dp.objectives.flow import TimeSampling, between, draw_times
from dp.objectives.shortcut import MeanVelocity
from dp.types import Denoiser

DELTA = 1e-3
"""Half the time over which the derivative is measured."""


class MeanFlow(MeanVelocity):
    """Predicts the mean velocity u from t to t + d, so that any number of steps, even one, gives samples.

    With the velocity v of the path, u = v + d * du/dt (Geng et al. 2025, eq. 6, whose times run the other way). The
    derivative is taken along the network's own v, u for d = 0, which varies less than the velocity of a single path
    (Geng et al. 2025, "Improved mean flows"). The denoiser gets two times, t and d.

    Args:
        num_inference_steps: evaluations of the denoiser for one sample.
        flow_share: share of a batch with d = 0, where u is the velocity.
        power: of the squared error by which a sample's loss is divided (section 4.3); 0: plain squares.
        time_sampling: how training draws the two ends (`dp.objectives.Flow`).
        time_scale: the denoiser gets times multiplied by this. A large scale makes the derivative steep, and training
            unstable.
    """

    def __init__(
        self,
        num_inference_steps: int,
        flow_share: Share = 0.75,
        power: Rate = 0.5,
        time_sampling: TimeSampling = "uniform",
        time_scale: Size = 3.0,
    ) -> None:
        super().__init__(num_inference_steps, time_scale)
        self.flow_share, self.power, self.time_sampling = flow_share, power, time_sampling

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Squared error of u (Geng et al. 2025, algorithm 1). The derivative is a difference of two evaluations, so any
        network and any engine will do."""
        device = action.device
        noise = draw(torch.randn, action.shape, generator=generator, device=device)
        ends = torch.stack([draw_times(self.time_sampling, len(action), device, generator) for _ in range(2)])
        t, d = ends.amin(0), ends.amax(0) - ends.amin(0)
        n_own = len(action) - round(self.flow_share * len(action))
        d[n_own:] = 0
        x, v = between(action, noise, t), action - noise
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            own = x[:n_own], t[:n_own], d[:n_own], cond[:n_own]
            target = v.clone()
            target[:n_own] += d[:n_own, :, None] * self._derivative(denoiser, *own)
        error = (self.mean_velocity(denoiser, x, t, d, cond).float() - target).square().mean((1, 2))
        return (error / (error.detach() + 1e-3) ** self.power).mean()

    def _derivative(self, denoiser: Denoiser, x: Tensor, t: Tensor, d: Tensor, cond: Tensor) -> Float[Tensor, "B H Da"]:
        """du/dt along the path, whose end stays where it is."""
        v = self.mean_velocity(denoiser, x, t, torch.zeros_like(d), cond)
        after = self.mean_velocity(denoiser, x + DELTA * v, t + DELTA, d - DELTA, cond)
        before = self.mean_velocity(denoiser, x - DELTA * v, t - DELTA, d + DELTA, cond)
        return (after - before) / (2 * DELTA)

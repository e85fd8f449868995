"""Shortcut models (Frans et al. 2024): a flow whose network knows how far it is to step."""

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dp.distributed import draw
from dp.limits import Positive, Share, Size
from dp.objectives.flow import between
from dp.types import Denoiser, Generator


class MeanVelocity(nn.Module):
    """A denoiser that predicts the mean velocity of the path from t to t + d, and gets the two times t and d.

    Args:
        num_inference_steps: evaluations of the denoiser for one sample.
        time_scale: the denoiser gets times multiplied by this.
    """

    n_times = 2

    def __init__(self, num_inference_steps: int, time_scale: float) -> None:
        super().__init__()
        self.num_inference_steps, self.time_scale = num_inference_steps, time_scale

    def mean_velocity(
        self,
        denoiser: Denoiser,
        x: Float[Tensor, "B H Da"],
        t: Float[Tensor, "B 1"],
        d: Float[Tensor, "B 1"],
        cond: Float[Tensor, "B To Do"],
    ) -> Float[Tensor, "B H Da"]:
        """What the denoiser predicts from `x`, the point of the path at time t."""
        return denoiser(x, self.time_scale * torch.cat([t, d], dim=1), cond)

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]:
        """From noise to actions in equal steps, without further random numbers."""
        x, d = noise, 1 / self.num_inference_steps
        for step in range(self.num_inference_steps):
            start, ahead = (torch.full((len(x), 1), time, device=x.device) for time in (step * d, d))
            x = x + d * self.mean_velocity(denoiser, x, start, ahead, cond)
        return x


class Shortcut(MeanVelocity):
    """Predicts the mean velocity over the next `d` of the path, so that any number of steps gives samples.

    The denoiser gets two times: t, and d. For d = 0 it learns the flow; for larger ones, that one step of 2d is as good
    as two of d by its own account.

    Args:
        num_inference_steps: evaluations of the denoiser for one sample.
        finest: largest number of steps that training prepares for, a power of two.
        self_share: share of a batch that learns longer steps; the rest learns the flow.
        time_scale: the denoiser gets times multiplied by this.

    Raises:
        ValueError: if `finest` is not a power of two.
    """

    def __init__(
        self, num_inference_steps: int, finest: Positive = 128, self_share: Share = 0.25, time_scale: Size = 100.0
    ) -> None:
        super().__init__(num_inference_steps, time_scale)
        if finest < 2 or finest & (finest - 1):
            raise ValueError(f"finest={finest}, expected a power of two")
        self.self_share, self.n_levels = self_share, finest.bit_length() - 1

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]:
        """Flow matching and self-consistency (Frans et al. 2024, eq. 5 and algorithm 1), the targets with the weights
        of this step."""
        n_own, device = round(self.self_share * len(action)), action.device
        noise = draw(torch.randn, action.shape, generator=generator, device=device)
        t = draw(torch.rand, (len(action), 1), generator=generator, device=device)
        level = draw(
            partial(torch.randint, self.n_levels), (n_own, 1), generator=generator, device=device
        )  # a step of 2 ** -level
        d = torch.zeros_like(t)
        d[:n_own] = 0.5**level
        t[:n_own] = d[:n_own] * (t[:n_own] / d[:n_own]).floor()  # where a sampler with such steps comes by
        x, target = between(action, noise, t), action - noise
        with torch.no_grad():
            own = x[:n_own], t[:n_own], d[:n_own] / 2, cond[:n_own]
            target[:n_own] = self._two_steps(denoiser, *own, finest=level == self.n_levels - 1)
        return F.mse_loss(self.mean_velocity(denoiser, x, t, d, cond).float(), target)

    def _two_steps(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, d: Tensor, cond: Tensor, finest: Tensor
    ) -> Float[Tensor, "B H Da"]:
        """The mean velocity of two steps of `d`. The finest are the flow's."""
        known = torch.where(finest, 0.0, d)
        first = self.mean_velocity(denoiser, x, t, known, cond)
        second = self.mean_velocity(denoiser, x + d[..., None] * first, t + d, known, cond)
        return (first + second) / 2

"""Features of times."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


def check_width(width: int, n_heads: int) -> None:
    """Raises ValueError for a width of tokens that heads cannot share, or that has no sinusoidal embedding."""
    if width % n_heads or width % 2 or width < 4:
        raise ValueError(f"width={width}, expected an even multiple of n_heads={n_heads}, at least 4")


class SinusoidalEmbedding(nn.Module):
    """Sine and cosine features of a time, whole or fractional (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequencies = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1)))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Shaped[Tensor, " B"]) -> Float[Tensor, "B dim"]:
        angles = t[:, None] * self.get_buffer("frequencies")
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Module):
    """A vector for the n times that the objective gives with a sample, from the sum of their features' perceptrons.

    Args:
        dim: of the vector; even, at least 4.
        n_times: n.
    """

    def __init__(self, dim: int, n_times: int) -> None:
        super().__init__()
        self.features = SinusoidalEmbedding(dim)
        self.first = nn.ModuleList(nn.Linear(dim, dim) for _ in range(n_times))
        self.last = nn.Linear(dim, dim)

    def forward(self, t: Shaped[Tensor, "B n"]) -> Float[Tensor, "B dim"]:
        hidden = [first(self.features(time)) for first, time in zip(self.first, t.unbind(1), strict=True)]
        return self.last(nn.functional.silu(torch.stack(hidden).sum(0)))

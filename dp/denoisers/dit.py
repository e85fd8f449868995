"""A diffusion transformer over action tokens (Peebles and Xie 2023) that looks at observations by cross-attention."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dp.denoisers.embedding import TimeEmbedding, check_width
from dp.limits import Dropout, Width


class DiT(nn.Module):
    """Blocks of self-attention, cross-attention to observation tokens, and a perceptron, all modulated by the time.

    Every branch starts as zero (adaLN-Zero, Peebles and Xie 2023, section 3.2), so an untrained network is shallow. The
    modulation also sees the mean of the observation tokens, as in Dasari et al. 2024.

    Args:
        action_dim: Da.
        obs_dim: Do.
        horizon, n_obs_steps: H, To.
        width: of a token; even, a multiple of `n_heads`.
        n_layers, n_heads: blocks, and heads of their attention.
        dropout: of the branches.
        n_times: times that the objective gives with every sample.

    Raises:
        ValueError: for a width that is odd or no multiple of `n_heads`.
    """

    def __init__(
        self,
        action_dim: int,
        obs_dim: int,
        horizon: int,
        n_obs_steps: int,
        width: Width = 256,
        n_layers: Width = 6,
        n_heads: Width = 4,
        dropout: Dropout = 0.0,
        n_times: int = 1,
    ) -> None:
        super().__init__()
        check_width(width, n_heads)
        self.action_in = nn.Linear(action_dim, width)
        self.obs_in = nn.Sequential(nn.Linear(obs_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.action_positions = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.obs_positions = nn.Parameter(0.02 * torch.randn(n_obs_steps, width))
        self.time = TimeEmbedding(width, n_times)
        self.blocks = nn.ModuleList(Block(width, n_heads, dropout) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _zero(nn.Linear(width, 2 * width))
        self.action_out = _zero(nn.Linear(width, action_dim))

    def forward(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B n"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]:
        observed = self.obs_in(cond) + self.obs_positions
        about = F.silu(self.time(t) + observed.mean(1))[:, None]
        h = self.action_in(x) + self.action_positions
        for block in self.blocks:
            h = block(h, observed, about)
        scale, shift = self.modulation(about).chunk(2, dim=-1)
        return self.action_out(self.norm(h) * (1 + scale) + shift)


class Block(nn.Module):
    """Three modulated branches."""

    def __init__(self, width: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.own, self.crossed = Attention(width, n_heads), Attention(width, n_heads)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation, self.dropout = _zero(nn.Linear(width, 9 * width)), nn.Dropout(dropout)

    def forward(
        self, h: Float[Tensor, "B H W"], observed: Float[Tensor, "B To W"], about: Float[Tensor, "B 1 W"]
    ) -> Float[Tensor, "B H W"]:
        branches: tuple[Callable[[Tensor], Tensor], ...]
        branches = (lambda x: self.own(x, x), lambda x: self.crossed(x, observed), self.perceptron)
        for branch, modulation in zip(branches, self.modulation(about).chunk(3, dim=-1), strict=True):
            scale, shift, gate = modulation.chunk(3, dim=-1)
            h = h + gate * self.dropout(branch(self.norm(h) * (1 + scale) + shift))
        return h


class Attention(nn.Module):
    """Multi-head attention from one sequence to another."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key_value, self.out = (nn.Linear(width, n * width) for n in (1, 2, 1))

    def forward(self, x: Float[Tensor, "B T W"], context: Float[Tensor, "B S W"]) -> Float[Tensor, "B T W"]:
        parts = (self.query(x), *self.key_value(context).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

"""A residual perceptron over the whole action sequence."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from dp.denoisers.embedding import TimeEmbedding
from dp.limits import Dropout, Width


class MLP(nn.Module):
    """Residual blocks over actions, condition and time together, all flat. For low-dimensional tasks.

    Args:
        action_dim, horizon: Da, H.
        cond_dim: C = To * Do.
        width, n_layers: features of a block, and number of blocks.
        dropout: in the blocks.
        n_times: times that the objective gives with every sample.
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        width: Width = 512,
        n_layers: Width = 4,
        dropout: Dropout = 0.0,
        n_times: int = 1,
    ) -> None:
        super().__init__()
        self.time = TimeEmbedding(64, n_times)
        self.first = nn.Linear(horizon * action_dim + cond_dim + 64, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width)
            )
            for _ in range(n_layers)
        )
        self.last = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, horizon * action_dim))

    def forward(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B n"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]:
        hidden = self.first(torch.cat([x.flatten(1), cond.flatten(1), self.time(t).to(cond.dtype)], dim=1))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.last(hidden).unflatten(1, x.shape[1:])

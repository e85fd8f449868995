"""Attention over what several cameras saw at several steps."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dp.denoisers.embedding import SinusoidalEmbedding, check_width


class AttentionPool(nn.Module):
    """One feature vector per observation step, pooled from the features of all cameras at all steps.

    The query of each step attends to all (Lee et al. 2019, "Set Transformer", pooling by multi-head attention), and the
    mean over the cameras of its own step is added.

    Args:
        dim: size of a camera's features, an even multiple of `n_heads`.
        n_cameras: their number.
    """

    def __init__(self, dim: int, n_cameras: int, n_heads: int = 4) -> None:
        super().__init__()
        check_width(dim, n_heads)
        self.n_heads = n_heads
        self.steps = SinusoidalEmbedding(dim)
        self.camera = nn.Parameter(0.02 * torch.randn(n_cameras, dim))
        self.norm, self.query = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.key_value, self.out = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, features: Float[Tensor, "B To C D"]) -> Float[Tensor, "B To D"]:
        n_steps = features.shape[1]
        steps = self.steps(torch.arange(n_steps, device=features.device))  # (To, D)
        tokens = (self.norm(features) + self.camera + steps[:, None]).flatten(1, 2)  # (B, To*C, D)
        query = self.query(steps).expand(len(features), -1, -1)
        key, value = self.key_value(tokens).chunk(2, dim=-1)
        pooled = F.scaled_dot_product_attention(self._heads(query), self._heads(key), self._heads(value))
        return features.mean(2) + self.out(pooled.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N Dh"]:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

"""A linear layer whose second input stays the same through a sampling loop."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dp.kernels import switch
from dp.kernels.memo import memoize


class ConcatLinear(nn.Linear):
    """`nn.Linear` over the concatenation of two inputs. A sampling loop computes the second one's part once."""

    def __init__(self, first_dim: int, second_dim: int, outputs: int) -> None:
        super().__init__(first_dim + second_dim, outputs)
        self.first_dim = first_dim

    def forward(  # type: ignore[override]
        self, first: Float[Tensor, "B first"], second: Float[Tensor, "B second"]
    ) -> Float[Tensor, "B out"]:
        # With gradients, one product: its backward pass is one product per gradient, too.
        if torch.is_grad_enabled() or not switch.enabled():
            return super().forward(torch.cat([first, second], dim=-1))
        return F.linear(first, self.weight[:, : self.first_dim]) + memoize(self._of_second, second)

    def _of_second(self, second: Float[Tensor, "B second"]) -> Float[Tensor, "B out"]:
        return F.linear(second, self.weight[:, self.first_dim :], self.bias)

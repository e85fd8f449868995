"""GroupNorm over (L, B, C).

`nn.GroupNorm` expects (B, C, L). On a CPU its result would leave every later activation transposed in memory, which is
slow.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp.kernels import switch


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` for (L, B, C): statistics over the whole length and the channels of one group."""

    def forward(self, x: Float[Tensor, "L B C"]) -> Float[Tensor, "L B C"]:
        # Twenty operations cost more to launch than one: for a small batch torch's own is faster.
        if switch.active(x) and x.dtype == torch.float32 and x.shape[1] >= switch.BLOCK:
            return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x.permute(1, 2, 0)).permute(2, 0, 1)


class _GroupNorm(torch.autograd.Function):
    """Sums over L first, in the order of memory, then over the channels of a group.

    Shapes: L length, B sequences, C channels, G groups of S channels each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, n_groups: int, eps: float) -> Tensor:
        # Normalise by the mean and variance of each group, then scale and shift each channel.
        groups = x.unflatten(-1, (n_groups, -1))  # (L, B, G, S)
        count = len(groups) * groups.shape[-1]
        mean = x.sum(0).unflatten(-1, (n_groups, -1)).sum(-1, keepdim=True) / count  # (B, G, 1)
        centred = groups - mean
        variance = torch.linalg.vector_norm(centred, dim=-1, keepdim=True).square_().sum(0) / count
        rstd = (variance + eps).rsqrt_()  # (B, G, 1)
        scale = rstd * weight.unflatten(0, (n_groups, -1))  # (B, G, S)
        ctx.save_for_backward(centred, rstd, scale)
        return torch.addcmul(bias, centred.flatten(2), scale.flatten(1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        centred, rstd, scale = ctx.saved_tensors
        grad = grad.unflatten(-1, scale.shape[1:])  # (L, B, G, S)
        count = len(centred) * centred.shape[-1]
        # The gradient passes through the normalised values, the mean and the variance of a group.
        of_bias, of_scale = grad.sum(0), (grad * centred).sum(0)  # (B, G, S)
        of_mean = (of_bias * scale).sum(-1, keepdim=True) / -count  # (B, G, 1)
        of_variance = (of_scale * scale).sum(-1, keepdim=True) * rstd.square() / -count
        of_x = torch.addcmul(of_mean.expand_as(scale), grad, scale).addcmul_(centred, of_variance.expand_as(scale))
        return of_x.flatten(2), (of_scale * rstd).sum(0).flatten(), of_bias.sum(0).flatten(), None, None

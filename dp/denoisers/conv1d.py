"""1-d convolutions over (L, B, C), written as matrix products.

Short sequences (L = 16) leave `nn.Conv1d` far below a processor's peak. One GEMM of concatenated shifted views reaches
it, and `winograd` needs half of that GEMM's multiplications where it can be used. Parameters have `nn.Conv1d`'s
names, shapes and values, so weights are interchangeable. In memory a weight lies in the order in which the GEMM reads
it, which makes flattening it a view.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dp import winograd
from dp.once import once
from dp.types import BLOCK

PANEL = 64
"""Output channels that are multiplied together in sampling, where a batch has fewer than `BLOCK` sequences."""


class Conv1d(nn.Conv1d):
    """`nn.Conv1d` with zero padding, for (L, B, C) instead of (B, C, L)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.pad = padding
        self.weight.data = self.weight.data.permute(2, 1, 0).contiguous().permute(2, 1, 0)

    def forward(self, x: Float[Tensor, "L B Cin"]) -> Float[Tensor, "Lout B Cout"]:
        (kernel,), (stride,) = self.kernel_size, self.stride
        taps, bias = self.weight.permute(2, 1, 0), self.get_parameter("bias")  # (kernel, Cin, Cout), as it lies
        if stride == 1 and winograd.pays(x, kernel):
            return winograd.conv1d(x, self.weight, self.pad) + bias
        if (kernel, stride, self.pad) != (1, 1, 0):
            x = F.pad(x, (0, 0, 0, 0, self.pad, self.pad))
            last = x.shape[0] - kernel + 1
            x = torch.cat([x[tap : tap + last : stride] for tap in range(kernel)], dim=-1)
        if x.device.type == "cpu" and x.shape[1] < BLOCK and not torch.is_grad_enabled():
            panels = once(_panels, self.weight)
            y = torch.bmm(x.flatten(0, 1).expand(len(panels), -1, -1), panels)  # (panels, Lout * B, PANEL)
            return (y.transpose(0, 1).flatten(1) + bias).unflatten(0, x.shape[:2])
        return torch.addmm(bias, x.flatten(0, 1), taps.flatten(0, 1)).unflatten(0, x.shape[:2])


def _panels(weight: Float[Tensor, "Cout Cin K"]) -> Float[Tensor, "panels KCin PANEL"]:
    """The GEMM's matrix, cut between output channels.

    With few rows a GEMM takes as long as reading its matrix does, and strips of a wide one are read at half of the
    memory's speed. Threads share several products, too, but not one of few rows.
    """
    width = math.gcd(len(weight), PANEL)
    return torch.cat([tap.unflatten(1, (-1, width)).transpose(0, 1) for tap in weight.permute(2, 1, 0)], dim=1)


class Upsample1d(nn.ConvTranspose1d):
    """`nn.ConvTranspose1d(channels, channels, 4, 2, 1)` for (L, B, C): doubles the length."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=4, stride=2, padding=1)
        self.weight.data = self.weight.data.permute(2, 0, 1).contiguous().permute(1, 2, 0)

    def forward(self, x: Float[Tensor, "L B C"]) -> Float[Tensor, "L2 B C"]:  # type: ignore[override]
        # Output 2j sums taps 3 and 1 of inputs j-1 and j; output 2j+1 taps 2 and 0 of inputs j and j+1.
        taps = self.weight.permute(2, 0, 1)  # (4, Cin, Cout)
        padded, flat = F.pad(x, (0, 0, 0, 0, 1, 1)), x.flatten(0, 1)
        before, after = padded[:-2].flatten(0, 1), padded[2:].flatten(0, 1)
        y = torch.bmm(torch.stack([after, flat]), taps[:2])
        odd, even = torch.baddbmm(y, torch.stack([flat, before]), taps[2:]).unflatten(1, x.shape[:2])
        return torch.stack([even, odd], dim=1).flatten(0, 1) + self.get_parameter("bias")  # (2L, B, C)


class GroupNorm1d(nn.GroupNorm):
    """`nn.GroupNorm` for (L, B, C): statistics over the whole length and the channels of one group."""

    def forward(self, x: Float[Tensor, "L B C"]) -> Float[Tensor, "L B C"]:
        return super().forward(x.permute(1, 2, 0)).permute(2, 0, 1)

"""1-d convolutions over (L, B, C), written as matrix products.

Short sequences (L = 16) leave `nn.Conv1d` far below a processor's peak. One GEMM of concatenated shifted views reaches
it, and `winograd` needs half of that GEMM's multiplications if it applies. A weight has its dimensions in the
order in which the GEMM reads it, which makes flattening it a view. In a state dict it has `nn.Conv1d`'s name, shape and
value, so weights are interchangeable.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dp.kernels import switch, winograd
from dp.kernels.memo import memoize

PANEL = 64
"""Number of output channels that are multiplied together when sampling fewer than `switch.BLOCK` sequences."""


class GemmOrder(_ConvNd):
    """A convolution of torch's whose `weight` is (K, Cin, Cout), except in state dicts.

    It is not merely a view: AdamW's fused kernel makes a contiguous copy of every gradient on a CPU (and does
    not use it), which took a sixth of a large network's training step.
    """

    to_gemm: tuple[int, int, int]
    to_torch: tuple[int, int, int]

    def reset_parameters(self) -> None:
        """Draws from torch's distribution, directly into the weight's own layout."""
        (kernel,), inputs, outputs = self.kernel_size, self.in_channels, self.out_channels
        bound = (kernel * inputs) ** -0.5
        self.weight = nn.Parameter(torch.empty(kernel, inputs, outputs).uniform_(-bound, bound))
        nn.init.uniform_(self.get_parameter("bias"), -bound, bound)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        name = prefix + "weight"
        destination[name] = destination[name].permute(self.to_torch)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        name = prefix + "weight"
        if name in state_dict:
            state_dict = {**state_dict, name: state_dict[name].permute(self.to_gemm)}
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Conv1d(GemmOrder, nn.Conv1d):
    """`nn.Conv1d` with zero padding, for (L, B, C) instead of (B, C, L)."""

    to_gemm = to_torch = (2, 1, 0)

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.pad = padding

    def forward(self, x: Float[Tensor, "L B Cin"]) -> Float[Tensor, "Lout B Cout"]:
        if not switch.enabled():
            y = F.conv1d(x.permute(1, 2, 0), self.weight.permute(self.to_torch), self.bias, self.stride, self.padding)
            return y.permute(2, 0, 1)
        (kernel,), (stride,) = self.kernel_size, self.stride
        bias = self.get_parameter("bias")
        if stride == 1 and winograd.pays(x, kernel):
            return winograd.conv1d(x, self.weight, self.pad) + bias
        # Concatenate the shifted views of x, one per tap, so that one product with the weight convolves.
        if (kernel, stride, self.pad) != (1, 1, 0):
            x = F.pad(x, (0, 0, 0, 0, self.pad, self.pad))
            last = x.shape[0] - kernel + 1
            x = torch.cat([x[tap : tap + last : stride] for tap in range(kernel)], dim=-1)
        if self._reads_panels(x):
            panels = memoize(_panels, self.weight)
            y = torch.bmm(x.flatten(0, 1).expand(len(panels), -1, -1), panels)  # (panels, Lout * B, PANEL)
            return (y.transpose(0, 1).flatten(1) + bias).unflatten(0, x.shape[:2])
        return torch.addmm(bias, x.flatten(0, 1), self.weight.flatten(0, 1)).unflatten(0, x.shape[:2])

    @staticmethod
    def _reads_panels(x: Tensor) -> bool:
        return switch.active(x) and x.shape[1] < switch.BLOCK and not torch.is_grad_enabled()


def _panels(weight: Float[Tensor, "K Cin Cout"]) -> Float[Tensor, "panels KCin PANEL"]:
    """The GEMM's matrix, cut between output channels.

    With few rows a GEMM takes as long as reading its matrix does, and strips of a wide one are read at half of the
    memory's speed. Several products are also shared between threads, unlike one with few rows.
    """
    width = math.gcd(weight.shape[2], PANEL)
    return torch.cat([tap.unflatten(1, (-1, width)).transpose(0, 1) for tap in weight], dim=1)


class ConvTranspose1d(GemmOrder, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d` for (L, B, C). Kernel 4, stride 2 and padding 1, which double the length, are fast."""

    to_gemm, to_torch = (2, 0, 1), (1, 2, 0)

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0):
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.pad = padding

    def forward(self, x: Float[Tensor, "L B Cin"]) -> Float[Tensor, "Lout B Cout"]:  # type: ignore[override]
        if switch.enabled() and (self.kernel_size, self.stride, self.pad) == ((4,), (2,), 1):
            return self._double(x)
        weight = self.weight.permute(self.to_torch)
        return F.conv_transpose1d(x.permute(1, 2, 0), weight, self.bias, self.stride, self.pad).permute(2, 0, 1)

    def _double(self, x: Float[Tensor, "L B Cin"]) -> Float[Tensor, "L2 B Cout"]:
        # Output 2j sums taps 3 and 1 of inputs j-1 and j; output 2j+1 taps 2 and 0 of inputs j and j+1.
        padded, flat = F.pad(x, (0, 0, 0, 0, 1, 1)), x.flatten(0, 1)
        before, after = padded[:-2].flatten(0, 1), padded[2:].flatten(0, 1)
        y = torch.bmm(torch.stack([after, flat]), self.weight[:2])
        odd, even = torch.baddbmm(y, torch.stack([flat, before]), self.weight[2:]).unflatten(1, x.shape[:2])
        return torch.stack([even, odd], dim=1).flatten(0, 1) + self.get_parameter("bias")  # (2L, B, Cout)

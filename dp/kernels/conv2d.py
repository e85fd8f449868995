"""2-d convolution that needs fewer multiplications for small maps in training on a CPU."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from dp.kernels import winograd


class Conv2d(nn.Conv2d):
    """`nn.Conv2d`, for channels-last images through `winograd` if that pays."""

    @classmethod
    def like(cls, layer: nn.Conv2d) -> "Conv2d":
        """The same convolution as `layer`, sharing its parameters. Draws no random numbers."""
        names = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        settings: dict[str, Any] = {name: getattr(layer, name) for name in names}
        same = cls(layer.in_channels, layer.out_channels, bias=layer.bias is not None, device="meta", **settings)
        same.weight, same.bias = layer.weight, layer.bias
        return same

    def forward(self, x: Float[Tensor, "N Cin Y X"]) -> Float[Tensor, "N Cout Yout Xout"]:
        if self._is_plain() and winograd.pays_2d(x, self.kernel_size[0]):
            return winograd.conv2d(x, self.weight, int(self.padding[0]))
        return super().forward(x)

    def _is_plain(self) -> bool:
        """Returns whether `winograd.conv2d` can compute it: a square kernel, stride 1, one group, no bias."""
        square = self.kernel_size[0] == self.kernel_size[1] and self.padding == (self.padding[0],) * 2
        dense = self.stride == (1, 1) and self.dilation == (1, 1) and self.groups == 1
        return square and dense and self.bias is None and self.padding_mode == "zeros"

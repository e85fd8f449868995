"""Winograd's minimal filtering: a convolution over a short sequence with half of the multiplications, or less.

m neighbouring outputs of a filter with K taps take m K products. They are also coefficients of a product of
polynomials, which is known from its values at m + K - 1 points: one product each (Winograd 1980; in networks Lavin &
Gray 2016, arXiv 1509.09308). Over channels each product is a GEMM; what evaluates at points and interpolates again are
small constant matrices over time. In float32 the result is off by some 1e-6 of the largest output; bfloat16 is too
coarse for it.
"""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

POINTS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
"""At which polynomials are evaluated, beside infinity; near 1, so that their powers do not differ much."""

LONGEST_TILE = 4
"""Outputs that are computed together, m. More would save more products, and lose more to rounding."""

ENOUGH_ROWS = 32
"""Of each GEMM. With fewer, transforming the weights costs more than it saves."""

_transformed: ContextVar[dict[Tensor, Tensor] | None] = ContextVar("transformed", default=None)


@contextmanager
def fixed_weights() -> Iterator[None]:
    """Inside, weights must stay as they are: each is transformed only once."""
    token = _transformed.set({})
    try:
        yield
    finally:
        _transformed.reset(token)


def pays(x: Float[Tensor, "L B C"], kernel: int) -> bool:
    """Whether `convolve` is worth it: in float32 on a CPU, where multiplications are what takes the time."""
    on_cpu = x.device.type == "cpu" and not torch.compiler.is_compiling()
    in_float32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    enough_rows = math.ceil(len(x) / LONGEST_TILE) * x.shape[1] >= ENOUGH_ROWS
    return on_cpu and in_float32 and 1 < kernel <= len(POINTS) and enough_rows


def convolve(
    x: Float[Tensor, "L B Cin"], weight: Float[Tensor, "Cout Cin K"], padding: int
) -> Float[Tensor, "Lout B Cout"]:
    """`torch.nn.functional.conv1d` with stride 1, over (L, B, C). Fastest for a weight that lies as (K, Cin, Cout)."""
    length, batch, channels = x.shape
    evaluate, interpolate, transform = matrices(length, weight.shape[2], padding)
    points = len(transform)
    values = (evaluate @ x.flatten(1)).view(points, -1, channels)  # (P, tiles * B, Cin)
    products = torch.bmm(values, _transform(weight, transform)).view(interpolate.shape[1], -1)
    return (interpolate @ products).view(-1, batch, weight.shape[0])


def _transform(weight: Float[Tensor, "Cout Cin K"], transform: Float[Tensor, "P K"]) -> Float[Tensor, "P Cin Cout"]:
    known = _transformed.get()
    if known is not None and weight in known:
        return known[weight]
    taps = weight.permute(2, 1, 0)
    result = (transform @ taps.flatten(1)).view(-1, *taps.shape[1:])
    if known is not None:
        known[weight] = result
    return result


@functools.cache
def matrices(
    length: int, kernel: int, padding: int
) -> tuple[Float[Tensor, "PT L"], Float[Tensor, "Lout PT"], Float[Tensor, "P K"]]:
    """What evaluates tiles of the inputs at P points, interpolates outputs from products there, and transforms taps."""
    outputs = length + 2 * padding - kernel + 1
    longest = min(LONGEST_TILE, len(POINTS) + 2 - kernel)
    tile = min(range(1, longest + 1), key=lambda m: math.ceil(outputs / m) * (m + kernel - 1))
    tiles, points = math.ceil(outputs / tile), tile + kernel - 1

    def powers(n: int) -> np.ndarray:
        """(P, n): a polynomial's n coefficients -> its values; at infinity, its last coefficient."""
        return np.concatenate([np.vander(POINTS[: points - 1], n, increasing=True), np.eye(n)[-1:]])

    # Outputs are sums over inputs of what multiplies into them: the transpose of a product of polynomials.
    inputs = np.linalg.inv(powers(points)).T
    scale = np.abs(inputs).max(1, keepdims=True)  # keeps values at all points of one size
    evaluate, interpolate = np.zeros((points, tiles, length)), np.zeros((outputs, points, tiles))
    for t in range(tiles):
        first = t * tile - padding
        inside = [j for j in range(points) if 0 <= first + j < length]
        evaluate[:, t, [first + j for j in inside]] = (inputs / scale)[:, inside]
        interpolate[t * tile : (t + 1) * tile, :, t] = powers(tile).T[: outputs - t * tile]
    found = evaluate.reshape(-1, length), interpolate.reshape(outputs, -1), powers(kernel) * scale
    return tuple(torch.from_numpy(m.astype(np.float32)) for m in found)  # type: ignore[return-value]

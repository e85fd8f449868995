"""Winograd's minimal filtering: a convolution over a short sequence or a small image with half of the multiplications.

m neighbouring outputs of a filter with K taps take m K products. They are also coefficients of a product of
polynomials, which is known from its values at m + K - 1 points: one product each (Winograd 1980; in networks Lavin &
Gray 2016, arXiv 1509.09308). Over channels each product is a GEMM. Small constant matrices over positions evaluate at
the points and interpolate. In float32 the result is off by some 1e-6 of the largest output; bfloat16 is too coarse for
it.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dp.kernels import switch
from dp.kernels.memo import memoize

POINTS = (0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0)
"""Points at which polynomials are evaluated, with infinity. They are near 1, so that their powers are, too."""

LONGEST_TILE = 4
"""Largest number of outputs computed together, m. More outputs save more products and lose more to rounding."""

ENOUGH_IMAGES = 32
"""Smallest number of images for which transforming the weights pays."""

MOST_PIXELS = 36
"""Largest image that pays: the constant matrices grow with the square of its pixels. 11 x 11 gained nothing."""

PAGE, CACHE_LINE = 1024, 16
"""Sizes of a memory page and a cache line, in floats. If the rows of a matrix are whole pages, the entries of a column
compete for the same few places in the cache. With one line between rows, a GEMM takes 5 ms instead of 9."""

Matrices = tuple[Float[Tensor, "PT L"], Float[Tensor, "Lout PT"], Float[Tensor, "P K"]]
"""Three matrices: one evaluates input tiles at P points, one interpolates outputs, one transforms the taps."""


def pays(x: Float[Tensor, "L B C"], kernel: int) -> bool:
    """Returns whether `conv1d` pays: in float32 on a CPU, where multiplications take the time, and for enough sequences
    to make up for transforming the weights."""
    return _possible(x, kernel) and x.shape[1] >= switch.BLOCK


def pays_2d(x: Float[Tensor, "N C Y X"], kernel: int) -> bool:
    """Returns whether `conv2d` pays: in training only, because the backward pass gains."""
    small = x.shape[2] * x.shape[3] <= MOST_PIXELS
    return _possible(x, kernel) and torch.is_grad_enabled() and small and len(x) >= ENOUGH_IMAGES


def _possible(x: Tensor, kernel: int) -> bool:
    float32 = x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return switch.active(x) and float32 and 1 < kernel <= len(POINTS)


def conv1d(
    x: Float[Tensor, "L B Cin"], weight: Float[Tensor, "K Cin Cout"], padding: int
) -> Float[Tensor, "Lout B Cout"]:
    """`torch.nn.functional.conv1d` with stride 1, of sequences and weights that have their dimensions in this order."""
    return _filtered(x, weight, matrices(len(x), len(weight), padding))


def conv2d(
    x: Float[Tensor, "N Cin Y X"], weight: Float[Tensor, "Cout Cin K K"], padding: int
) -> Float[Tensor, "N Cout Yout Xout"]:
    """`torch.nn.functional.conv2d` with stride 1, of channels-last images."""
    height, width, kernel = *x.shape[2:], weight.shape[2]
    pixels = x.permute(2, 3, 0, 1).flatten(0, 1)  # (Y X, N, Cin)
    # Turned tap by tap, and so is the gradient: all in one take three times as long.
    taps = torch.stack([tap.t() for tap in weight.permute(0, 2, 3, 1).flatten(1, 2).unbind(1)])  # (K K, Cin, Cout)
    y = _filtered(pixels, taps, matrices_2d(height, width, kernel, padding))
    y = y.unflatten(0, (height + 2 * padding - kernel + 1, -1)).permute(2, 3, 0, 1)
    return y.contiguous(memory_format=torch.channels_last)


def _filtered(
    x: Float[Tensor, "L B Cin"], taps: Float[Tensor, "K Cin Cout"], matrices: Matrices
) -> Float[Tensor, "Lout B Cout"]:
    evaluate, interpolate, transform = matrices
    # Evaluate the inputs at P points, multiply channels at each point, interpolate the outputs.
    values = (evaluate @ x.flatten(1)).view(len(transform), -1, x.shape[2])  # (P, tiles * B, Cin)
    products = torch.bmm(values, memoize(_transform, taps, transform)).view(interpolate.shape[1], -1)
    return (interpolate @ products).view(-1, x.shape[1], taps.shape[2])


def _transform(taps: Float[Tensor, "K Cin Cout"], transform: Float[Tensor, "P K"]) -> Float[Tensor, "P Cin Cout"]:
    outputs = taps.shape[2]
    if outputs % PAGE == 0 and not torch.is_grad_enabled():  # a training step loses by the copy what it gains
        taps = F.pad(taps, (0, CACHE_LINE))
    return (transform @ taps.flatten(1)).view(-1, *taps.shape[1:])[..., :outputs]


@functools.cache
def matrices(length: int, kernel: int, padding: int) -> Matrices:
    """Returns the matrices for a sequence."""
    outputs = length + 2 * padding - kernel + 1
    longest = min(LONGEST_TILE, len(POINTS) + 2 - kernel)
    # Choose the tile with the fewest products over the whole length.
    tile = min(range(1, longest + 1), key=lambda m: math.ceil(outputs / m) * (m + kernel - 1))
    tiles, points = math.ceil(outputs / tile), tile + kernel - 1

    def powers(n: int) -> np.ndarray:
        """(P, n): a polynomial's n coefficients -> its values; at infinity, its last coefficient."""
        return np.concatenate([np.vander(POINTS[: points - 1], n, increasing=True), np.eye(n)[-1:]])

    # Outputs are sums over inputs of what multiplies into them: the transpose of a product of polynomials.
    inputs = np.linalg.inv(powers(points)).T
    scale = np.abs(inputs).max(1, keepdims=True)  # keeps values at all points of one size
    evaluate, interpolate = np.zeros((points, tiles, length)), np.zeros((outputs, points, tiles))
    # Place the small matrices of a tile at its inputs and outputs. Inputs outside are zero padding.
    for t in range(tiles):
        first = t * tile - padding
        inside = [j for j in range(points) if 0 <= first + j < length]
        evaluate[:, t, [first + j for j in inside]] = (inputs / scale)[:, inside]
        interpolate[t * tile : (t + 1) * tile, :, t] = powers(tile).T[: outputs - t * tile]
    found = evaluate.reshape(-1, length), interpolate.reshape(outputs, -1), powers(kernel) * scale
    return tuple(torch.from_numpy(m.astype(np.float32)) for m in found)  # type: ignore[return-value]


@functools.cache
def matrices_2d(height: int, width: int, kernel: int, padding: int) -> Matrices:
    """Returns the matrices for an image, row by row: Kronecker products of those along its two sides."""
    (along_y, back_y, taps_y), (along_x, back_x, taps_x) = (matrices(n, kernel, padding) for n in (height, width))
    p, q = len(taps_y), len(taps_x)
    # A tile of the image is a pair of tiles, and a point a pair of points, one along each side.
    evaluate = torch.einsum("pty,qux->pqtuyx", along_y.unflatten(0, (p, -1)), along_x.unflatten(0, (q, -1)))
    interpolate = torch.einsum("ypt,xqu->yxpqtu", back_y.unflatten(1, (p, -1)), back_x.unflatten(1, (q, -1)))
    return (
        evaluate.reshape(-1, height * width),
        interpolate.flatten(0, 1).flatten(1).contiguous(),
        torch.kron(taps_y, taps_x),
    )

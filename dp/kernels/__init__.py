"""Layers with torch's names, arguments and state dicts that compute faster if they can, and their one switch.

`Conv1d`, `ConvTranspose1d` and `GroupNorm` read (L, B, C) where torch's layers read (B, C, L). In `use("reference")`
every layer computes with torch's own operator.
"""

from dp.kernels.conv1d import Conv1d, ConvTranspose1d
from dp.kernels.conv2d import Conv2d
from dp.kernels.linear import ConcatLinear
from dp.kernels.memo import memoize, sampling_loop
from dp.kernels.mish import Mish
from dp.kernels.norm import GroupNorm
from dp.kernels.switch import BLOCK, ROWS, use

__all__ = [
    "BLOCK",
    "ROWS",
    "ConcatLinear",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "GroupNorm",
    "Mish",
    "memoize",
    "sampling_loop",
    "use",
]

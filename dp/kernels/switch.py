"""The one switch and the one predicate of everything in `dp/kernels/`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

CHOICES = ("auto", "reference")

BLOCK = 8
"""Batch size from which the CPU kernels pay off. Smaller batches are computed in another way, which rounds
differently."""

ROWS = 16
"""In batches of a multiple of it, a row does not depend on their number, to the bit on a CPU (a GPU promises less).
Rollouts therefore pad their batches to a multiple of it. With AVX512-BF16, torch's product of 8 rows and a 512 x 128
matrix rounds otherwise than that of 16."""

_enabled = True


def use(kernels: str) -> AbstractContextManager[None]:
    """A context in which layers compute with our kernels ("auto") or with torch's own operators ("reference").

    Outside of any such context it is "auto". Raises ValueError for another name.
    """
    if kernels not in CHOICES:
        raise ValueError(f"kernels={kernels}, expected {' or '.join(CHOICES)}")
    return _switched(kernels == "auto")


@contextmanager
def _switched(enabled: bool) -> Iterator[None]:
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def enabled() -> bool:
    """Returns whether the switch is on. This alone decides about rewritings that pay on every device."""
    return _enabled


def active(x: Tensor) -> bool:
    """Returns whether CPU kernels may compute with `x`: the switch is on, `x` is on a CPU, nothing is compiled."""
    return _enabled and x.device.type == "cpu" and not torch.compiler.is_compiling()

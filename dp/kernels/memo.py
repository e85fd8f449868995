"""What stays the same through a denoising loop is computed in its first step only."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_known: ContextVar[dict[Hashable, Tensor] | None] = ContextVar("known", default=None)


@contextmanager
def one_loop() -> Iterator[None]:
    """Inside, weights and conditions must not be changed in place."""
    token = _known.set({})
    try:
        yield
    finally:
        _known.reset(token)


def once(compute: Callable[..., Tensor], *given: Tensor) -> Tensor:
    """`compute(*given)`; in `one_loop` what `compute` made of the same tensors before, told apart by identity."""
    known = None if torch.compiler.is_compiling() else _known.get()
    if known is None:
        return compute(*given)
    key = (compute, *given)
    if key not in known:
        known[key] = compute(*given)
    return known[key]

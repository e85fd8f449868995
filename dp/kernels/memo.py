"""Computes results that stay the same through a sampling loop only in its first step."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from dp.kernels import switch

_results: ContextVar[dict[Hashable, Tensor] | None] = ContextVar("results", default=None)


@contextmanager
def sampling_loop() -> Iterator[None]:
    """A context in which `memoize` keeps its results. Weights and conditions must not be changed in place in it."""
    token = _results.set({})
    try:
        yield
    finally:
        _results.reset(token)


def memoize(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """`compute(*tensors)`. In a `sampling_loop`, a repeated call with the same tensor objects returns the first result.

    Everywhere else, in compiled code and with `kernels=reference` it simply computes.
    """
    results = None if torch.compiler.is_compiling() or not switch.enabled() else _results.get()
    if results is None:
        return compute(*tensors)
    key = (compute, *tensors)
    if key not in results:
        results[key] = compute(*tensors)
    return results[key]

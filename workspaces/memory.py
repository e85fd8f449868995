"""Refuses networks that do not fit in memory before they take it."""

import math
import os
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Memory of this machine in bytes."""


class MemoryLimit(TorchDispatchMode):
    """Limits the weights made within it to `n_bytes` in all. Layers allocate their weights before they fill them.

    Raises ValueError beyond that.
    """

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self.left, self.limit = n_bytes, n_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.empty.memory_format:
            dtype = kwargs.get("dtype") or torch.get_default_dtype()
            self.left -= math.prod(args[0]) * dtype.itemsize
            if self.left < 0:
                raise ValueError(
                    f"its weights take more than {self.limit / 1e9:.0f} GB, half of this machine's memory: set "
                    "smaller sizes"
                )
        return func(*args, **kwargs)

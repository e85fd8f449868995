"""The tensors of a zip file of torch, made from what an inert pickle says of them."""

import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workspaces.importers.reference.inert import Inert, Stored

DTYPES = {
    "torch.FloatStorage": torch.float32, "torch.DoubleStorage": torch.float64, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
}  # fmt: skip

MAX_DIMENSIONS = 8


class Tensors:
    """Reads tensors from the parts of a zip file. Several may be views of one part, which is read once."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self.file = file
        self.folder = next(name for name in file.namelist() if name.endswith(".pkl")).rpartition("/")[0]
        self.parts: dict[Stored, Tensor] = {}

    def read(self, entries: Mapping[str, Any]) -> dict[str, Tensor]:
        """Raises ValueError for an entry that is no tensor, and for tensors with more numbers than the file holds."""
        tensors = {name: self._tensor(node, f"{name:.100}") for name, node in entries.items()}
        n_held = sum(part.numel() for part in self.parts.values())
        if (n_claimed := sum(tensor.numel() for tensor in tensors.values())) > n_held:
            raise ValueError(f"its tensors claim {n_claimed:,} numbers, but it holds {n_held:,}")
        return tensors

    def _tensor(self, node: Any, name: str) -> Tensor:
        if isinstance(node, Inert) and node.kind == "torch._utils._rebuild_parameter" and node.arguments:
            node = node.arguments[0]
        known = isinstance(node, Inert) and node.kind == "torch._utils._rebuild_tensor_v2"
        match node.arguments if known else ():
            case (Stored() as stored, int() as offset, tuple() as shape, tuple() as strides, *_):
                values = self._values(stored)
            case _:
                raise ValueError(f"{name} is not a tensor")
        numbers = [offset, *shape, *strides]
        if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, numbers)):
            raise ValueError(f"{name} has a shape, strides or an offset that no tensor has")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 in shape or last >= len(values):
            raise ValueError(f"{name} claims the shape {shape!r:.60}, but its part holds {len(values):,} numbers")
        return values.as_strided(shape, strides, offset)

    def _values(self, stored: Stored) -> Tensor:
        """The numbers of a part, floating point ones in 32 bits."""
        if stored not in self.parts:
            dtype = DTYPES.get(stored.kind)
            if dtype is None:
                raise ValueError(f"it has a {stored.kind:.60}, expected one of {', '.join(DTYPES)}")
            content = self.file.read(f"{self.folder}/data/{stored.part}")
            if not content or len(content) != stored.n_values * dtype.itemsize:
                expected = f"{stored.n_values} numbers of {dtype.itemsize} bytes"
                raise ValueError(f"its part {stored.part:.60} has {len(content):,} bytes, expected {expected}")
            values = torch.frombuffer(bytearray(content), dtype=dtype)
            self.parts[stored] = values.float() if dtype.is_floating_point else values
        return self.parts[stored]


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number < 2**48

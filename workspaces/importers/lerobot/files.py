"""Files of a LeRobot policy, read within limits."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workspaces.foreign import parse_json, read_text

MAX_BYTES = 4 << 30
"""Largest file of weights. LeRobot's default policy has 1.05 GB."""

MAX_JSON_BYTES = 1 << 20


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, floating point numbers in 32 bits. Raises ValueError for a damaged file."""
    if not path.is_file():
        raise ValueError(f"{path.name} is missing")
    if (n_bytes := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path.name} has {n_bytes:,} bytes, expected at most {MAX_BYTES:,}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, RuntimeError, AttributeError) as error:  # AttributeError: a type that torch lacks
        raise ValueError(f"{path.name} is damaged: {str(error).splitlines()[0]:.200}") from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def read_json(file: Path) -> Any:
    """The value in a JSON file. Links are followed, because the hub's cache consists of them."""
    if not file.is_file():
        raise ValueError(f"{file.name} is missing")
    return parse_json(read_text(file.resolve(), MAX_JSON_BYTES), file.name)

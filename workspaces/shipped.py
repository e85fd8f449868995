"""Policies as small files: averaged weights in 8 or 16 bits, with the configuration and the origin in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dp.files import write_bytes

FILE = "model.safetensors"

FORMAT = "dp-policy-1"

PREFIX = "bundled/"

SCALE = "#scale"
"""Ending of the names of tensors that hold the scale of each row of a matrix in eight bits."""

LARGE = 4096
"""Number of weights from which a matrix is stored in fewer bits. Smaller tensors stay as they are."""

MAX_BYTES = 1 << 30

ROOT = Path(__file__).parent.parent / "dp" / "tasks"


def folder(name: str) -> Path:
    """The folder of the policy `bundled/<name>`. Raises ValueError, naming those that there are."""
    known = {path.parent.name: path.parent for path in sorted(ROOT.glob(f"*/bundled/*/{FILE}"))}
    if name.removeprefix(PREFIX) not in known:
        offered = ", ".join(PREFIX + known_name for known_name in known) or "none"
        raise ValueError(f"checkpoint={name}: no policy of this name is bundled. There are: {offered}")
    return known[name.removeprefix(PREFIX)]


def read(path: Path) -> dict[str, Any]:
    """What a checkpoint would hold for evaluation and fine-tuning. Raises ValueError for any other file."""
    where = f"checkpoint={path}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{where} has {path.stat().st_size:,} bytes, expected at most {MAX_BYTES:,}")
        with safe_open(path, "pt") as file:
            about, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about.get("format") != FORMAT:
            raise ValueError(f"{where} is not a policy of dp: its header lacks format={FORMAT}")
        facts = json.loads(about["facts"])
        weights = {
            name: _whole(tensor, tensors.get(name + SCALE)) for name, tensor in tensors.items() if SCALE not in name
        }
        return {**{key: facts[key] for key in ("config", "step", "versions", "n_threads")}, "ema": {"model": weights}}
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is damaged or not a policy of dp: {str(error).splitlines()[0]}") from None


def write(path: Path, state: Mapping[str, Any], bits: int) -> None:
    """Writes the averaged policy of a checkpoint. bits: of each weight of large matrices: 8, 16 or 32."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in state["ema"]["model"].items():
        large = tensor.is_floating_point() and tensor.ndim >= 2 and tensor.numel() >= LARGE
        if large and bits == 8:
            tensors[name], tensors[name + SCALE] = _eight_bits(tensor)
        else:
            tensors[name] = (tensor.half() if large and bits == 16 else tensor).contiguous()
    facts = {key: state.get(key) for key in ("config", "step", "versions", "n_threads")}
    write_bytes(path, save(tensors, {"format": FORMAT, "facts": json.dumps(facts)}))


def _eight_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, and what one of them is worth in each row."""
    scale = tensor.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    return (tensor / _by_row(scale, tensor)).round().to(torch.int8).contiguous(), scale


def _whole(tensor: Tensor, scale: Tensor | None) -> Tensor:
    if scale is not None:
        return tensor.float() * _by_row(scale, tensor)
    return tensor.float() if tensor.dtype == torch.float16 else tensor


def _by_row(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.ndim - 1))

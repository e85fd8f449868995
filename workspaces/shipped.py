"""Policies that are included, as small files: averaged weights in 8 or 16 bits, with their origin in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from dp.pretrained import FORMAT, LARGE, WEIGHTS, read_tensors, write_tensors

FILE = WEIGHTS

PREFIX = "bundled/"

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
        about, weights = read_tensors(path)
        if about.get("format") != FORMAT:
            raise ValueError(f"{where} is not a policy of dp: its header lacks format={FORMAT}")
        facts = json.loads(about["facts"])
        return {**{key: facts[key] for key in ("config", "step", "versions", "n_threads")}, "ema": {"model": weights}}
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is damaged or not a policy of dp: {str(error).splitlines()[0]}") from None


def write(path: Path, state: Mapping[str, Any], bits: int) -> None:
    """Writes the averaged policy of a checkpoint. bits: of each weight of large matrices: 8, 16 or 32."""
    write_tensors(path, state["ema"]["model"], state, bits)


__all__ = ["FILE", "FORMAT", "LARGE", "PREFIX", "ROOT", "folder", "read", "write"]

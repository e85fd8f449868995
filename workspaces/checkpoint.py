"""Checkpoints: named state dicts, tensors and primitives, nothing that runs."""

import contextlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import torch

from dp.files import write_atomically
from workspaces.load import migrate, migrate_weights
from workspaces.trust import check_fields, check_weights, plain

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes atomically. Raises OSError, with nothing lost, where the disk is full or closed to us."""

    def write(file: IO[bytes]) -> None:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:  # torch's zip writer reports a failed write this way
            raise OSError(f"cannot write {path} ({str(error).splitlines()[0]}): is the disk full?") from error

    try:
        write_atomically(path, write)
    except OSError as error:
        raise OSError(f"checkpoint {path} was not saved, the one before is intact: {error}") from error


def find(name: str) -> Path:
    """The file that a user means: a checkpoint, or the last one of a run directory."""
    path = Path(name).expanduser()
    return path / "checkpoints/last.pt" if path.is_dir() else path


def load(path: Path) -> dict[str, Any]:
    """Reads tensors and primitives only: a file from a stranger cannot run code here.

    Raises ValueError where there is no checkpoint of this project, and for entries of other types than it writes.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint={path}: there is no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the damage makes of it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint={path} is damaged or not a checkpoint of dp: {reason}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"checkpoint={path} is not a checkpoint of this version of dp (format {FORMAT})")
    where = f"checkpoint={path}"
    check_fields(state, where)
    if "config" in state:
        state["config"] = migrate(plain(state["config"], where))
    if "ema" in state:
        check_weights(state["ema"].get("model"), where)
    for holder, name in ((state, "policy"), (state.get("ema", {}), "model")):
        if name in holder and "config" in state:
            holder[name] = migrate_weights(holder[name], state["config"])
    return state


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """What a run is made with: the libraries of every run, and the task's own `packages`, as far as they are there."""
    found = {}
    for name in ("torch", "torchvision", "diffusers", "numpy", *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


__all__ = ["FORMAT", "find", "load", "save", "versions"]

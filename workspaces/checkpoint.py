"""Checkpoints hold named state dicts, tensors and primitives, and no code."""

import contextlib
import importlib.metadata
import pickletools
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch

from dp.files import write_atomically
from workspaces import archive, importers, shipped
from workspaces.config import Config
from workspaces.load import migrate, migrate_weights
from workspaces.schema import check
from workspaces.trust import STATE, check_contents, check_weights, plain

FORMAT = 1

NAMED = re.compile(r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)")
"""Names that the pickle may contain. `weights_only` allows more, such as bytearray(10**11), which takes 100 GB."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes atomically. Raises OSError, with nothing lost, if the disk is full or not writable."""

    def write(file: IO[bytes]) -> None:
        try:
            torch.save({"format": FORMAT, **state}, file)
        except RuntimeError as error:  # torch's zip writer reports a failed write this way
            raise OSError(f"cannot write {path} ({str(error).splitlines()[0]}): is the disk full?") from error

    try:
        write_atomically(path, write)
    except OSError as error:
        raise OSError(f"checkpoint {path} was not saved, but the one before is intact: {error}") from error


def find(name: str) -> Path:
    """The checkpoint that a user names: a file, the last one of a run directory (ours or another project's), or a
    bundled one."""
    path = Path(name).expanduser()
    if name.startswith(shipped.PREFIX) and not path.exists():
        path = shipped.folder(name)
    if path.is_dir():
        own = path / "checkpoints/last.pt"
        return own if own.is_file() else importers.found_in(path) or own
    return path


def load(path: Path, given: Config | None = None) -> dict[str, Any]:
    """Reads tensors and primitives only: a file from a stranger cannot run code here.

    given: the composed configuration, whose task and protocol a policy of another project gets. None: only checkpoints
    of this project.

    Raises ValueError if there is no checkpoint of this project, if it is damaged (every part has a checksum), or if an
    entry has the wrong type.
    """
    if not path.is_file():
        within = path.parent.parent if path.name == "last.pt" else path
        runs = sorted(file.parent.parent for file in within.glob("*/checkpoints/last.pt"))
        hint = f". Its runs are further down, the latest in {runs[-1]}" if runs else ""
        raise ValueError(f"checkpoint={path}: there is no such file{hint}")
    where = f"checkpoint={path}"
    state = _read(path, given)
    if "config" in state:
        state["config"] = plain(state["config"], where)
    check_contents(state, where)
    check(state, STATE, where)
    if "ema" in state:
        check_weights(state["ema"]["model"], where)
    if "config" in state:
        state["config"] = migrate(state["config"])
        for holder, name in ((state, "policy"), (state.get("ema", {}), "model")):
            if name in holder:
                holder[name] = migrate_weights(holder[name], state["config"])
    return state


def _read(path: Path, given: Config | None) -> dict[str, Any]:
    importer = None if given is None else importers.importer_of(path)
    if importer is not None and given is not None:
        return importer(path, given)
    return shipped.read(path) if path.suffix == ".safetensors" else _unpickled(path)


def _unpickled(path: Path) -> dict[str, Any]:
    """The content of a checkpoint of a training. Raises ValueError for any other file."""
    where = f"checkpoint={path}"
    if reason := damage(path):
        raise ValueError(f"{where} is damaged or not a checkpoint of dp: {reason}{_advice(path)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises whatever the contents make of it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{where} is damaged or not a checkpoint of dp: {reason}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"{where} is not a checkpoint of this version of dp (format {FORMAT})")
    return {name: value for name, value in state.items() if name != "origin"}  # which only importers state


def check_complete(state: Mapping[str, Any], entries: Iterable[str], where: str) -> None:
    """Raises ValueError naming the first of `entries` that a checkpoint lacks."""
    for entry in entries:
        if entry not in state:
            raise ValueError(f"{where} lacks {entry}: not loaded")


def damage(path: Path) -> str | None:
    """Describes the damage of a file without unpickling anything; None if it is whole.

    torch writes a zip file without compression, with a checksum (CRC-32) for every part. Raises OSError for an
    unreadable file.
    """
    try:
        with zipfile.ZipFile(path) as archive_file:
            if fault := archive.fault(archive_file, path):
                return fault
            if (corrupt := archive_file.testzip()) is not None:
                return f"its part {corrupt} does not match its checksum"
            return _unexpected_name(archive.read_pickle(archive_file))
    except archive.DAMAGED as error:
        return archive.reason(error)


def _unexpected_name(content: bytes) -> str | None:
    """Describes the first name in a pickle that is not in `NAMED`."""
    for operation, argument, _ in pickletools.genops(content):
        named = operation.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4")
        if named and not (operation.name == "GLOBAL" and NAMED.fullmatch(str(argument))):
            return f"it names {str(argument).replace(' ', '.')}, which is not to be trusted"
    return None


def _advice(path: Path) -> str:
    """Names the newest best checkpoint next to `path` that is whole."""
    for file in sorted(path.parent.glob("best-*.pt"), reverse=True):
        if file.name != path.name and file.is_file() and damage(file) is None:
            return f". The newest intact checkpoint of this run is {file}"
    return ""


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the libraries of every run and of the task's own `packages`, as far as they are installed."""
    found = {}
    for name in ("torch", "torchvision", "diffusers", "numpy", *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def about(config: Config, packages: Iterable[str], wandb_id: str | None) -> dict[str, Any]:
    """What every checkpoint of a training holds next to its weights."""
    return {"config": config, "versions": versions(packages), "wandb_id": wandb_id}


__all__ = ["FORMAT", "about", "check_complete", "damage", "find", "load", "save", "versions"]

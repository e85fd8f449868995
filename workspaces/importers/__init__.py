"""Policies of other projects, read into the layout of this one: `read(path, given)` of one package per format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workspaces.config import Config
from workspaces.importers import lerobot, reference

Importer = Callable[[Path, Config], dict[str, Any]]


def importer_of(path: Path) -> Importer | None:
    """The reader of another project's file, which it recognises by its content; None for any other file."""
    return next((project.read for project in (lerobot, reference) if project.recognizes(path)), None)


def found_in(folder: Path) -> Path | None:
    """The newest policy in a directory that another project's training wrote; None if there is none."""
    places = (*lerobot.PLACES, *reference.PLACES)
    return next((folder / place for place in places if (folder / place).is_file()), None)


__all__ = ["found_in", "importer_of"]

"""Reads files that somebody else may have written: ordinary files of a limited size and depth, never links."""

import contextlib
import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

MAX_BYTES = 64 << 20
"""Largest file that is read as text."""

MAX_VIDEO_BYTES = 64 << 20
"""Largest video that a page shows."""

MAX_YAML_BYTES = 1 << 20
"""Largest configuration. Parsing YAML takes 5 s per megabyte."""

WRITTEN = (
    ".lock", "run.log", "run.json", "config.yaml", "metrics.jsonl", "evaluation.json", "sweep.json", "improve.json",
    "critic.safetensors", "lessons", "report.html", "dashboard.json", "compare.html", "compare.json",
    "checkpoints", "media", "rollouts", "wandb", "tables", "figures", "videos", "pictures",
)  # fmt: skip
"""Names that runs and reports write in their directories."""


def check_inside(run_dir: Path) -> None:
    """Raises ValueError if a run or a report would write outside `run_dir`, or would wait for ever.

    A link that leads out is the first case, anything that is neither a file nor a folder the second.
    """
    inside = run_dir.resolve()
    for path in _written(run_dir):
        if path.is_symlink():
            if not path.resolve().is_relative_to(inside):
                raise ValueError(f"{path} is a link that leads out of the run directory: set another run_dir")
        elif not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is neither a file nor a folder: set another run_dir")


def _written(run_dir: Path) -> list[Path]:
    """Existing paths among `WRITTEN`, with everything below them. Each run makes a new folder of wandb's: not those."""
    found = []
    for path in (run_dir / name for name in WRITTEN):
        if os.path.lexists(path):
            found.append(path)
            for folder, folders, files in os.walk(path):
                found += [Path(folder) / name for name in (*folders, *files)]
                if path.name == "wandb":
                    folders.clear()
    return found


def own(path: Path) -> Path:
    """`path`, of a file in a run directory. Raises ValueError for a link: it could show any file of this machine."""
    if path.is_symlink() or path.parent.is_symlink():
        raise ValueError(f"{path.name} is a link, or lies behind one, and nothing outside the run directory is read")
    return path


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """The text of an ordinary file. Raises ValueError for any other, and FileNotFoundError if there is none."""
    about = own(path).lstat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path.name} is not an ordinary file")  # opening a pipe would wait for ever
    if about.st_size > most:
        raise ValueError(f"{path.name} has {about.st_size:,} bytes, expected at most {most:,}")
    return path.read_bytes()[:most].decode(errors="replace")


def read_json(path: Path) -> Any:
    """The value in a JSON file; NaN and Infinity, which are no JSON, as None. Raises ValueError as `read_text` does."""
    return parse_json(read_text(path), path.name)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file that a command wrote to compare them when it is repeated. Raises ValueError."""
    try:
        settings = read_json(path)
        if not isinstance(settings, dict):
            raise ValueError(f"{path.name} holds no settings")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to go on with the settings that you type") from None
    return settings


def parse_json(text: str, where: str) -> Any:
    """The same of a text. `where`: its origin, for the message."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text, parse_constant=lambda _: None)
    raise ValueError(f"{where} is not JSON")


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file of at most `MAX_BYTES`. Raises ValueError, or what a damaged zip file raises."""
    if not own(path).is_file():
        raise ValueError(f"{path.name} is not an ordinary file")
    with zipfile.ZipFile(path) as archive:
        n_bytes = sum(part.file_size for part in archive.infolist())
    if n_bytes > MAX_BYTES:
        raise ValueError(f"{path.name} unpacks to {n_bytes:,} bytes, expected at most {MAX_BYTES:,}")
    with np.load(path) as file:
        return dict(file)


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a few of them can stand for a configuration of any size, or an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*), which no run writes")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """The value in a YAML file. Raises ValueError as `read_text` does."""
    text = read_text(path, MAX_YAML_BYTES)
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a configuration: {' '.join(str(error).split())[:200]}") from None

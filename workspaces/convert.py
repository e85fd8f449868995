"""Writes demonstrations in another file format."""

import logging
import shlex
import sys
from pathlib import Path
from typing import get_args

from dp.data.conversion import Format, convert
from dp.data.formats import open_store
from dp.data.opening import check_paths
from workspaces import build, command
from workspaces.arguments import MISSING, listed, shown
from workspaces.base import Config, Workspace
from workspaces.signals import Signals, StopNow

log = logging.getLogger(__name__)

CHOICES = {"zarr": "zarr", "lerobot": "lerobot", "hdf5": "robomimic"}
"""Format -> the choice of `dataset=` that reads it."""


class ConvertWorkspace(Workspace):
    """Writes the data set `from` to `to`, and reads it back.

    Raises ValueError if a setting is missing, there is no data set, or `to` holds something else.
    """

    computes = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        missing = [key for key in ("from", "to", "format") if config[key] in (MISSING, None)]
        if missing:
            example = "workspace=convert from=PATH to=PATH format=lerobot"
            raise ValueError(f"{missing[0]} is missing: type {example}, for one of the formats {get_args(Format)}")
        if config["format"] not in get_args(Format):
            raise ValueError(f"format={shown(config['format'])}, expected {listed(get_args(Format))}")
        task = build.task(config)
        given = task.data_path(config["from"])
        self.source = given if given is not None else _existing(config["from"])
        self.to, self.format = Path(config["to"]).expanduser(), config["format"]
        fps = config["fps"] or (task.control_hz if given is not None else None)
        self.fps = float(fps) if fps is not None else None
        self.signals = Signals()

    def run(self) -> None:
        with self.signals:
            try:
                with self.signals.interrupting():
                    sha256 = convert(open_store(self.source), self.to, self.format, self.fps)
            except StopNow:
                raise self.signals.interrupted(f"To go on: {shlex.join(['python', *sys.argv])}") from None
        log.info("%s: sha256 %s, and so it reads back", self.to, sha256)
        line = command.run(f"dataset={CHOICES[self.format]}", command.override("dataset.path", self.to))
        log.info("look at it: %s", line.replace("run.py", "run.py workspace=inspect", 1))


def _existing(path: str) -> Path:
    """Raises ValueError, naming the key, if nothing lies there."""
    try:
        return check_paths(path)[0]
    except ValueError as error:
        raise ValueError(str(error).replace("dataset.path=", "from=", 1)) from None

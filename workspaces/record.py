"""run.json: what a run is, what it runs on, and how it ended. Sweeps and reports go by it."""

import os
import platform
import socket
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from hydra.core.hydra_config import HydraConfig

from dp import files
from dp.processes import N_CORES
from workspaces.checkpoint import versions
from workspaces.foreign import read_json
from workspaces.schema import COUNT, NUMBER, Maybe, Schema, Time, check

FILE = "run.json"

State = Literal["waiting", "running", "interrupted", "failed", "finished"]
"""waiting: not begun. running: a process has the directory now. interrupted: it was killed, or asked to stop, before
its end. failed: an error ended it. finished: its results are complete."""

MAX_ERROR = 2000
"""Characters of an error that are kept."""

SCHEMA: Schema = {
    "verb": Maybe(str, null=False),
    "state": frozenset(get_args(State)),
    "score": Maybe(NUMBER),
    "error": Maybe(str),
    "pid": Maybe(COUNT),
    "overrides": Maybe([str], null=False),
    "begun": Maybe(Time()),
    "resumed": Maybe(Time()),
    "ended": Maybe(Time()),
    "machine": Maybe({"host": str, "cpu": str, "cores": COUNT, "gpu": Maybe(str)}),
    "versions": Maybe({str: str}),
    "commit": Maybe(str),
}
"""What run.json holds. Earlier versions had fewer fields."""


def begin(
    run_dir: Path,
    verb: str,
    device: torch.device,
    packages: Iterable[str] = (),
    typed: Sequence[str] | None = None,
    **facts: object,
) -> None:
    """A process takes the run up. typed: overrides that describe the run, by default those of this process. facts: more
    of what the run is computed with."""
    before = read_or_none(run_dir) or {}
    _write(
        run_dir,
        {
            "verb": verb,
            "state": "running",
            "score": None,
            "error": None,
            "pid": os.getpid(),
            "overrides": overrides() if typed is None else list(typed),
            "begun": before.get("begun") or _now(),
            "resumed": _now() if before else None,
            "ended": None,
            "machine": machine(device),
            **facts,
            "versions": {"python": platform.python_version(), **versions(packages)},
            "commit": commit(),
        },
    )


def end(run_dir: Path, state: State, score: float | None = None, error: str | None = None) -> None:
    """The process leaves the run, for the reason that `state` gives."""
    error = error and error[:MAX_ERROR]
    _write(run_dir, {**(read_or_none(run_dir) or {}), "state": state, "score": score, "error": error, "ended": _now()})


def read(run_dir: Path) -> dict[str, Any] | None:
    """What run.json holds; None where there is none. Raises ValueError for a file that is not ours, and what is odd."""
    try:
        record = read_json(run_dir / FILE)
        check(record, SCHEMA, FILE)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{run_dir / FILE} is damaged: {error}") from None
    return record


def read_or_none(run_dir: Path) -> dict[str, Any] | None:
    """The same with None for a damaged file, which whoever asks will replace."""
    try:
        return read(run_dir)
    except ValueError:
        return None


def is_ours(run_dir: Path) -> bool:
    """Whether it was this process that took the run up last."""
    return (read_or_none(run_dir) or {}).get("pid") == os.getpid()


def state_of(run_dir: Path) -> State:
    """How the run in `run_dir` stands. A process that was killed cannot say so: its lock is free.

    A damaged run.json says nothing either: the run is to be taken up again, which writes it anew.
    """
    if in_use(run_dir):
        return "running"
    try:
        record = read(run_dir)
    except ValueError:
        return "interrupted"
    if record is None:
        return "waiting"
    return "interrupted" if record["state"] == "running" else record["state"]


def in_use(run_dir: Path) -> bool:
    """Whether a process has the directory (`Workspace.take_run_dir`)."""
    return files.in_use(run_dir / ".lock")


def overrides() -> list[str]:
    """What the user typed, as Hydra understood it."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def machine(device: torch.device) -> dict[str, Any]:
    """Host, processor and cores; the GPU if the run is on one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "host": socket.gethostname(),
        "cpu": (names or [platform.processor()])[0],
        "cores": N_CORES,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def commit() -> str | None:
    """The code's commit, with "+changes" where files differ from it; None where it is not under git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True)
    except OSError:
        return None
    return f"{head.stdout.strip()}{'+changes' if changes.stdout else ''}" if head.returncode == 0 else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write(run_dir: Path, record: dict[str, Any]) -> None:
    files.write_json(run_dir / FILE, record)

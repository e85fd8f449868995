"""run.json records a run's settings, machine and end, for sweeps and reports."""

import os
import platform
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
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
"""waiting: not begun. running: a process holds the directory. interrupted: killed or stopped before the end. failed:
ended by an error. finished: the results are complete."""

MAX_ERROR = 2000
"""Longest recorded error, in characters."""

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
"""Fields of run.json. Earlier versions wrote fewer."""


def begin(
    run_dir: Path,
    verb: str,
    device: torch.device,
    packages: Iterable[str] = (),
    typed: Sequence[str] | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    """Records that this process begins or resumes the run. typed: overrides that describe the run, by default those of
    this process. facts: further fields."""
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
            **(facts or {}),
            "versions": {"python": platform.python_version(), **versions(packages)},
            "commit": commit(),
        },
    )


def end(run_dir: Path, state: State, score: float | None = None, error: str | None = None) -> None:
    """Records that this process leaves the run in `state`."""
    error = error and error[:MAX_ERROR]
    _write(run_dir, {**(read_or_none(run_dir) or {}), "state": state, "score": score, "error": error, "ended": _now()})


def read(run_dir: Path) -> dict[str, Any] | None:
    """The content of run.json; None if there is none. Raises ValueError for any other content."""
    try:
        record = read_json(run_dir / FILE)
        check(record, SCHEMA, FILE)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{run_dir / FILE} is damaged: {error}") from None
    return record


def read_or_none(run_dir: Path) -> dict[str, Any] | None:
    """The same, with None for a damaged file, which the caller will replace."""
    try:
        return read(run_dir)
    except ValueError:
        return None


def is_ours(run_dir: Path) -> bool:
    """Whether this process was the last to begin or resume the run."""
    return (read_or_none(run_dir) or {}).get("pid") == os.getpid()


def state_of(run_dir: Path) -> State:
    """The state of the run in `run_dir`. A killed process records nothing, but its lock is free.

    A run with a damaged run.json counts as interrupted: resuming it writes the file anew.
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
    """Whether a process holds the directory (`Workspace.take_run_dir`)."""
    return files.in_use(run_dir / ".lock")


def overrides() -> list[str]:
    """The overrides that the user typed, as Hydra understood them."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def machine(device: torch.device) -> dict[str, Any]:
    """Host, processor and cores, and the GPU if the run uses one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "host": socket.gethostname(),
        "cpu": (names or [platform.processor()])[0],
        "cores": N_CORES,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def commit() -> str | None:
    """The code's commit, with "+changes" where files differ from it; None if it is not under git."""
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

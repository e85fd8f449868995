"""run.json: what a run is, what it runs on, and how it ended. Sweeps and reports go by it."""

import fcntl
import json
import os
import platform
import shlex
import socket
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from dp.files import write_json
from dp.processes import N_CORES
from workspaces.checkpoint import versions

FILE = "run.json"

State = Literal["waiting", "running", "interrupted", "failed", "finished"]
"""waiting: not begun. running: a process has the directory now. interrupted: it was killed, or asked to stop, before
its end. failed: an error ended it. finished: its results are complete."""


def begin(run_dir: Path, verb: str, device: torch.device, packages: Iterable[str] = ()) -> None:
    """A process takes the run up."""
    before = read(run_dir) or {}
    _write(
        run_dir,
        {
            "verb": verb,
            "state": "running",
            "score": None,
            "error": None,
            "pid": os.getpid(),
            "overrides": overrides(),
            "begun": before.get("begun") or _now(),
            "resumed": _now() if before else None,
            "ended": None,
            "machine": machine(device),
            "versions": {"python": platform.python_version(), **versions(packages)},
            "commit": commit(),
        },
    )


def end(run_dir: Path, state: State, score: float | None = None, error: str | None = None) -> None:
    """The process leaves the run, for the reason that `state` gives."""
    _write(run_dir, {**(read(run_dir) or {}), "state": state, "score": score, "error": error, "ended": _now()})


def read(run_dir: Path) -> dict[str, Any] | None:
    """What run.json holds; None where there is none. Raises ValueError for a file that is not ours."""
    file = run_dir / FILE
    if file.is_symlink():
        raise ValueError(f"{file} is a link: nothing outside the run directory is read")
    try:
        record = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not isinstance(record, dict) or "state" not in record:
        raise ValueError(f"{run_dir / FILE} is damaged: expected what a run writes there")
    return record


def is_ours(run_dir: Path) -> bool:
    """Whether it was this process that took the run up last."""
    return (read(run_dir) or {}).get("pid") == os.getpid()


def state_of(run_dir: Path) -> State:
    """How the run in `run_dir` stands. A process that was killed cannot say so: its lock is free."""
    if in_use(run_dir):
        return "running"
    record = read(run_dir)
    if record is None:
        return "waiting"
    return "interrupted" if record["state"] == "running" else record["state"]


def in_use(run_dir: Path) -> bool:
    """Whether a process has the directory (`Workspace.take_run_dir`)."""
    if not (run_dir / ".lock").is_file():  # opening a FIFO would wait for ever
        return False
    try:
        with (run_dir / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def overrides() -> list[str]:
    """What the user typed, as Hydra understood it."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def command(overrides: Sequence[str]) -> str:
    """`python run.py` with these overrides, for a shell. A value that Hydra would not read bare is quoted for it."""
    return shlex.join(["python", "run.py", *map(_readable, overrides)])


def _readable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or not value:
        return override
    try:
        if value == value.strip() and not OverridesParser.create().parse_override(override).is_sweep_override():
            return override
    except HydraException:
        pass
    return f"{key}='{value.replace(chr(92), chr(92) * 2).replace(chr(39), chr(92) + chr(39))}'"


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
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _write(run_dir: Path, record: dict[str, Any]) -> None:
    write_json(run_dir / FILE, record)

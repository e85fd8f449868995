"""Rivals in turns: A B A B, each in a process of its own that lives as long as the contest. Standard library only."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and range. Peak memory of the process, MiB; of the GPU instead, if it has one."""

    median: float
    low: float
    high: float
    peak_mib: float


def serve(work: Callable[[], object], memory: Callable[[], float] | None = None) -> None:
    """A contender's side: warms up, then times one call of `work` for every line it reads, until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    work()
    answers.write("ready\n")
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        answers.write(json.dumps(time.perf_counter() - start) + "\n")
    peak = memory() if memory else _peak_rss_mib()
    answers.write(json.dumps(peak) + "\n")


def _peak_rss_mib() -> float:
    """Since the program was loaded; `getrusage` would count what its parent held before that."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


class _Contender:
    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  read when it has died
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=variables
        )
        if self._read() != "ready":
            raise RuntimeError(f"{name}: {self._last_words()}")

    def once(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read())

    def leave(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = float(self._read())
        self._process.wait()
        return peak

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _last_words(self) -> str:
        self._process.kill()  # it may be alive, and have printed something else
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"exit code {code}"


def race(
    commands: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str] | None = None
) -> tuple[dict[str, Timing], list[str]]:
    """Timings of the contenders that could be started, and why the others could not."""
    contenders, absent = [], []
    for name, command in commands.items():
        try:
            contenders.append(_Contender(name, command, environment or {}))
        except (RuntimeError, OSError) as error:
            absent.append(str(error))
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    for _ in range(rounds):
        for contender in contenders:
            times[contender.name].append(contender.once())
    peaks = {c.name: c.leave() for c in contenders}
    return {n: Timing(statistics.median(t), min(t), max(t), peaks[n]) for n, t in times.items()}, absent

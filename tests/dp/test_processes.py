"""Work spread over processes: in order, and nothing survives whoever asked for it."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dp.processes import in_processes

REPOSITORY = Path(__file__).parent.parent.parent


def slow_square(n: int) -> int:
    time.sleep(0.02 if n % 3 else 0.1)
    if n == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


@pytest.mark.parametrize("n_workers", [0, 2])
def test_results_come_in_order_from_arguments_without_end(n_workers: int) -> None:
    stream = in_processes(slow_square, itertools.count(), n_workers)
    assert list(itertools.islice(stream, 10)) == [(n, n * n) for n in range(10)]
    stream.close()


def test_a_killed_worker_is_an_error_that_names_the_work() -> None:
    with pytest.raises(ChildProcessError, match=r"at work on one of .*13"):
        list(in_processes(slow_square, range(20), 2))


PARENT = """
import itertools
from dp.processes import in_processes
from tests.dp.test_processes import sleepy
for _, pid in in_processes(sleepy, itertools.count(), 2):
    print(pid, flush=True)
"""


def sleepy(n: int) -> int:
    time.sleep(0 if n < 2 else 60)
    return os.getpid()


def test_workers_end_with_a_parent_that_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", PARENT], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    # Nothing is yielded before enough work is pending: ask for the children instead.
    deadline = time.monotonic() + 30
    workers: set[int] = set()
    while len(workers) < 4 and time.monotonic() < deadline:  # the fork server, the resource tracker, two workers
        workers = descendants(process.pid)
        time.sleep(0.05)
    time.sleep(1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while alive(workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) >= 4
    assert not alive(workers)


def descendants(pid: int) -> set[int]:
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, stack = set(), [pid]
    while stack:
        fresh = children.get(stack.pop(), [])
        found.update(fresh)
        stack += fresh
    return found


def alive(pids: set[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()]

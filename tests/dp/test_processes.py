"""Work spread over processes: in order, and nothing survives whoever asked for it."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dp.processes import in_processes, n_cores, shorten_socket_paths

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
    with pytest.raises(ChildProcessError, match=r"while it worked on one of .*13"):
        list(in_processes(slow_square, range(20), 2))


PARENT = """
import itertools
from dp.processes import in_processes, n_cores, shorten_socket_paths
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


@pytest.mark.parametrize(
    ("gone", "given", "expected"),
    [((), {"process_cpu_count": 3}, 3), ((), {"process_cpu_count": None}, 1), (("process_cpu_count",), {}, None),
     (("process_cpu_count", "sched_getaffinity"), {"cpu_count": 5}, 5)],
)  # fmt: skip
def test_cores_are_counted_by_whatever_the_system_has(
    gone: tuple[str, ...], given: dict[str, int | None], expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in gone:
        monkeypatch.delattr(os, name, raising=False)
    for name, count in given.items():
        monkeypatch.setattr(os, name, lambda count=count: count, raising=False)
    assert n_cores() == (expected or len(os.sched_getaffinity(0)))


LONG_TMPDIR = """
import multiprocessing.util, tempfile
from dp.processes import in_processes, n_cores, shorten_socket_paths
if __name__ == "__main__":
    print(list(in_processes(abs, [-1, -2], 1)), multiprocessing.util.get_temp_dir(), tempfile.gettempdir())
"""


def test_workers_start_under_a_long_tmpdir(tmp_path: Path) -> None:
    folder = tmp_path / ("a_long_name_of_a_job_directory_" * 4)
    folder.mkdir()
    env = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", LONG_TMPDIR]
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60)
    results, _, places = done.stdout.partition("] ")
    assert results == "[(-1, 1), (-2, 2)", done.stderr
    sockets, others = places.split()
    assert sockets.startswith("/tmp/pymp-")
    assert others == str(folder)


def test_a_tmpdir_that_is_too_long_is_named_where_no_short_one_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError("not here")

    monkeypatch.setattr("tempfile.tempdir", "/" + 100 * "x")
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", refuse)
    with pytest.raises(ValueError, match=r"TMPDIR=/xxx.* is too long for a Unix socket .* Set TMPDIR to a shorter"):
        shorten_socket_paths()


UNGUARDED = """
from dp.processes import check_main_guard, in_processes
check_main_guard()
print(list(in_processes(abs, [1], 1)))
"""


def test_a_script_without_a_main_guard_ends_and_python_says_why(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNGUARDED)
    command = [sys.executable, str(tmp_path / "script.py")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "if __name__ == '__main__'" in done.stderr
    assert "a worker process died" in done.stderr

"""Spreads work over processes and yields its results in order."""

import contextlib
import multiprocessing.spawn
import multiprocessing.util
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


def n_cores() -> int:
    """CPU cores that this process may use, at least 1."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


N_CORES = n_cores()
"""Number of CPU cores that this process may use."""

SOCKET_PATH_BYTES = 104
"""The longest path of a Unix socket, with its final zero: 104 on macOS, 108 on Linux."""

AHEAD = 4
"""Pieces of work per process that start before their results are needed."""


def forkserver() -> ForkServerContext:
    """Starts processes that inherit neither CUDA nor threads nor locks, whatever TMPDIR is.

    Raises ValueError if multiprocessing's sockets would lie too deep for the operating system.
    """
    shorten_socket_paths()
    return multiprocessing.get_context("forkserver")


def shorten_socket_paths() -> None:
    """Makes multiprocessing keep its sockets in /tmp if TMPDIR is too long for them, as batch systems make it.

    Call it before the first process starts. Raises ValueError if /tmp cannot be written either.
    """
    longest = len(os.fsencode(tempfile.gettempdir())) + len("/pymp-12345678/listener-12345678") + 1
    if longest <= SOCKET_PATH_BYTES:
        return
    chosen = tempfile.tempdir
    tempfile.tempdir = "/tmp"
    try:
        multiprocessing.util.get_temp_dir()  # kept for this process and its children
    except OSError as error:
        raise ValueError(
            f"TMPDIR={chosen} is too long for a Unix socket ({longest} bytes, {SOCKET_PATH_BYTES} at most) and /tmp "
            f"cannot be used ({error}). Set TMPDIR to a shorter directory"
        ) from None
    finally:
        tempfile.tempdir = chosen


def check_main_guard() -> None:
    """Call this before waiting for something that the parent process holds while it starts workers.

    Raises RuntimeError, in Python's own words, in a worker that imports the user's script again because the script has
    no `if __name__ == "__main__":`.
    """
    multiprocessing.spawn.get_preparation_data("worker")  # checks that first, as when a process is started


def in_processes(
    function: Callable[[A], R], arguments: Iterable[A], n_workers: int
) -> Generator[tuple[A, R], None, None]:
    """Yields (argument, function(argument)) in the order of `arguments`, which may have no end.

    n_workers: processes, started with forkserver, one thread each; 0 works in this one. They end when the iterator
    does or is closed, at once and in the middle of their work; and when this process dies, however it does.

    Raises what `function` raises, and ChildProcessError if a process dies.
    """
    if n_workers == 0:
        yield from ((argument, function(argument)) for argument in arguments)
        return
    context = forkserver()
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(n_workers, context, _begin_worker, (theirs,))
    pending: deque[tuple[A, Future[R]]] = deque()
    try:
        # Keep AHEAD pieces per worker in flight, and yield the oldest.
        for argument in arguments:
            pending.append((argument, pool.submit(function, argument)))
            if len(pending) == AHEAD * n_workers:
                yield pending[0][0], pending[0][1].result()
                pending.popleft()
        while pending:
            yield pending[0][0], pending[0][1].result()
            pending.popleft()
    except BrokenProcessPool:
        among = ", ".join(str(argument)[:40] for argument, _ in pending)
        raise ChildProcessError(
            f"a worker process died while it worked on one of {among}: it was killed (out of memory?), or see its "
            "error above"
        ) from None
    finally:
        if pending:
            ours.close()  # at once; otherwise they may tidy up
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def _begin_worker(lifeline: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()


def _leave_with(lifeline: Connection) -> None:
    """Waits until the parent closes its end or dies, and exits. Nothing is ever sent."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)

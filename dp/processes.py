"""Work spread over processes, its results in order."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")

N_CORES = len(os.sched_getaffinity(0))
"""That this process may use."""

AHEAD = 4
"""Pieces of work a process that are begun before they are asked for."""


def in_processes(
    function: Callable[[A], R], arguments: Iterable[A], n_workers: int
) -> Generator[tuple[A, R], None, None]:
    """Yields (argument, function(argument)) in the order of `arguments`, which may have no end.

    n_workers: processes, started with forkserver, one thread each; 0 works in this one. They end when the iterator
    does or is closed, at once and in the middle of their work; and when this process dies, however it does.

    Raises what `function` raises, and ChildProcessError where a process dies.
    """
    check_main_is_guarded()
    if n_workers == 0:
        yield from ((argument, function(argument)) for argument in arguments)
        return
    context = multiprocessing.get_context("forkserver")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(n_workers, context, _begin_worker, (theirs,))
    pending: deque[tuple[A, Future[R]]] = deque()
    try:
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
            f"a worker process was killed, at work on one of {among}: out of memory? "
            "(Or a script of your own without if __name__ == '__main__': then its error is above)"
        ) from None
    finally:
        if pending:
            ours.close()  # at once; otherwise they may tidy up
        pool.shutdown(cancel_futures=True)
        ours.close()
        theirs.close()


def check_main_is_guarded() -> None:
    """Raises RuntimeError in a worker that runs its parent's script again because nothing in it says not to.

    Whatever starts processes, or waits for a lock that the parent holds, would otherwise hang.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            "worker processes import your script again: put what it does, but for imports and definitions, under "
            "if __name__ == '__main__':"
        )


def _begin_worker(lifeline: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()


def _leave_with(lifeline: Connection) -> None:
    """Nothing is ever sent: the parent lets go of its end, or it is dead."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)

"""Many episodes at once, in worker processes that live as long as the pool."""

import contextlib
import ctypes
import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from dp.processes import forkserver
from dp.rollouts.episode import Chunk, Episode

MakeEpisode = Callable[[], Episode]

ARENA_BYTES = 8 * 2**20
"""Memory that a worker shares with the pool: more than the observations of a hundred episodes with images."""


@dataclass
class _Running:
    """An episode's reset and every chunk of actions since, from which it can be run again."""

    reset: tuple[int, int, bool]
    actions: list[np.ndarray] = field(default_factory=list)
    deaths: int = 0


class EnvPool:
    """Episodes, by number, spread over `n_workers` processes (0: in this process). One message per chunk and worker.

    Workers are started with forkserver, by `start` or when they are first needed, so that they inherit neither CUDA nor
    threads. An episode computes the same in every process. Arrays come back through shared memory. A worker
    that dies is replaced and its episodes run again, to the same state.
    """

    def __init__(self, make_episode: MakeEpisode, n_workers: int) -> None:
        self._make_episode = make_episode
        self._local: dict[int, Episode] = {}
        self._workers: list[_Worker | None] = [None] * n_workers
        self._running: dict[int, _Running] = {}

    def start(self) -> None:
        """Starts the workers without waiting for them: if processes, sockets or shared memory fail, they fail here.

        Raises OSError and ValueError.
        """
        for number in range(len(self._workers)):
            self._worker(number)

    def reset(self, episodes: Mapping[int, tuple[int, int, bool]]) -> dict[int, Chunk]:
        """`episodes`: number -> arguments of `Episode.reset`."""
        self._running |= {env: _Running(args) for env, args in episodes.items()}
        return self._run("reset", episodes)

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, Chunk]:
        """`actions`: number -> (Ta, Da).

        Raises RuntimeError, with the seed, if an episode kills its worker for the second time.
        """
        for env, chunk in actions.items():
            self._running[env].actions.append(chunk)
        return self._run("step", {env: (a,) for env, a in actions.items()})

    def close(self) -> None:
        """Ends the workers. The pool can be used again, from a reset on."""
        self._running.clear()
        for number, worker in enumerate(self._workers):
            if worker is not None:
                worker.close()
                self._workers[number] = None

    def _run(self, method: str, arguments: Mapping[int, tuple]) -> dict[int, Chunk]:
        try:
            chunks = self._run_in_workers(method, arguments) if self._workers else self._run_here(method, arguments)
        except BaseException:
            self.close()  # workers may still be busy with what they were asked
            raise
        for env, chunk in chunks.items():
            if chunk.ended:
                del self._running[env]
        return chunks

    def _run_here(self, method: str, arguments: Mapping[int, tuple]) -> dict[int, Chunk]:
        return {env: _call(self._local, self._make_episode, env, method, args) for env, args in arguments.items()}

    def _run_in_workers(self, method: str, arguments: Mapping[int, tuple]) -> dict[int, Chunk]:
        shares: dict[int, dict[int, tuple]] = {}
        for env, args in arguments.items():
            shares.setdefault(env % len(self._workers), {})[env] = args
        # Send to all workers first, then receive, so that they work at the same time.
        dead = [number for number, share in shares.items() if not self._worker(number).send(method, share)]
        chunks: dict[int, Chunk] = {}
        for number, share in shares.items():
            answer = None if number in dead else self._worker(number).receive()
            chunks |= self._run_again(number, share.keys()) if answer is None else answer
        return chunks

    def _worker(self, number: int) -> "_Worker":
        worker = self._workers[number]
        if worker is None:
            worker = self._workers[number] = _Worker(self._make_episode)
        return worker

    def _run_again(self, number: int, wanted: Any) -> dict[int, Chunk]:
        """Replaces a dead worker. Its episodes run again, one at a time, so that a second death names its episode."""
        lost = {env: run for env, run in self._running.items() if env % len(self._workers) == number}
        exit_code = self._bury(number)
        for run in lost.values():
            run.deaths += 1
        self._refuse_second_death(lost, exit_code)
        chunks: dict[int, Chunk] = {}
        for env, run in lost.items():
            for method, args in (("reset", run.reset), *(("step", (a,)) for a in run.actions)):
                worker = self._worker(number)
                answer = worker.receive() if worker.send(method, {env: args}) else None
                if answer is None:
                    run.deaths += 1
                    self._refuse_second_death({env: run}, self._bury(number))
                    raise AssertionError("a death after a death is the second")
                chunks |= answer
        return {env: chunks[env] for env in wanted}

    def _bury(self, number: int) -> int | None:
        worker, self._workers[number] = self._workers[number], None
        assert worker is not None
        return worker.close()

    def _refuse_second_death(self, episodes: Mapping[int, _Running], exit_code: int | None) -> None:
        seeds = [str(run.reset[0]) for run in episodes.values() if run.deaths > 1]
        if seeds:
            raise RuntimeError(
                f"an env worker died (exit code {exit_code}) for the second time while running the episode of seed "
                + " or ".join(seeds)
            )


class _Worker:
    def __init__(self, make_episode: MakeEpisode) -> None:
        context = forkserver()
        self._connection, theirs = context.Pipe()
        self._arena = context.RawArray("B", ARENA_BYTES)
        self._process = context.Process(target=_serve, args=(theirs, self._arena, make_episode), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, method: str, share: Mapping[int, tuple]) -> bool:
        """Returns whether the worker is there to receive it."""
        try:
            self._connection.send((method, share))
        except OSError:
            return False
        return True

    def receive(self) -> dict[int, Chunk] | None:
        """The answer, or None if the worker died over it. Raises what the episode raised."""
        try:
            pickled, buffers = self._connection.recv()
        except (EOFError, OSError):
            return None
        memory = memoryview(self._arena).cast("B")
        # Copied, because the next answer comes into the same memory.
        arrays = [bytes(memory[b]) if isinstance(b, slice) else b for b in buffers]
        answer = pickle.loads(pickled, buffers=arrays)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def close(self) -> int | None:
        """Ends the process. Returns its exit code."""
        self._connection.close()  # the worker reads the end of the stream and leaves
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


def _call(episodes: dict[int, Episode], make: MakeEpisode, env: int, method: str, args: tuple) -> Chunk:
    if env not in episodes:
        episodes[env] = make()
    return getattr(episodes[env], method)(*args)


def _serve(connection: Connection, arena: ctypes.Array, make_episode: MakeEpisode) -> None:
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"
    memory = memoryview(arena).cast("B")
    episodes: dict[int, Episode] = {}
    with contextlib.suppress(EOFError, OSError):  # the pool has closed, or died
        while True:
            method, share = connection.recv()
            answer: Any
            try:
                answer = {env: _call(episodes, make_episode, env, method, args) for env, args in share.items()}
            except Exception as error:
                answer = error
            connection.send(_pack(answer, memory))


def _pack(answer: Any, memory: memoryview) -> tuple[bytes, list]:
    """The answer without its arrays, and their places in the shared memory (or the arrays, if it is full)."""
    arrays: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(answer, protocol=5, buffer_callback=arrays.append)
    buffers: list[slice | bytes] = []
    end = 0
    for array in (a.raw() for a in arrays):
        if end + array.nbytes <= len(memory):
            memory[end : end + array.nbytes] = array
            buffers.append(slice(end, end + array.nbytes))
            end += array.nbytes
        else:
            buffers.append(bytes(array))
    return pickled, buffers

"""Many episodes at once, in worker processes that live as long as the pool."""

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import numpy as np

from dp.envs.episode import Chunk, Episode

MakeEpisode = Callable[[], Episode]


class EnvPool:
    """`n_envs` episodes, spread over `n_workers` processes (0: in this process). One message a chunk and worker.

    Workers are started with forkserver, so that they inherit neither CUDA nor threads. What an episode computes does
    not depend on where it runs. Use as a context manager.
    """

    def __init__(self, make_episode: MakeEpisode, n_envs: int, n_workers: int) -> None:
        n_workers = min(n_workers, n_envs)
        self._workers = [_Worker(make_episode) for _ in range(n_workers)]
        self._local = [make_episode() for _ in range(n_envs)] if n_workers == 0 else []
        for env in range(n_envs):
            if self._workers:
                self._workers[env % n_workers].send(("make", env, None))

    def reset(self, episodes: Mapping[int, tuple[int, int, bool]]) -> dict[int, Chunk]:
        """`episodes`: env -> arguments of `Episode.reset`."""
        return self._run("reset", episodes)

    def step(self, actions: Mapping[int, np.ndarray]) -> dict[int, Chunk]:
        """`actions`: env -> (Ta, Da)."""
        return self._run("step", {env: (a,) for env, a in actions.items()})

    def _run(self, method: str, arguments: Mapping[int, tuple]) -> dict[int, Chunk]:
        if not self._workers:
            return {env: getattr(self._local[env], method)(*args) for env, args in arguments.items()}
        shares: list[dict[int, tuple]] = [{} for _ in self._workers]
        for env, args in arguments.items():
            shares[env % len(self._workers)][env] = args
        busy = [(worker, share) for worker, share in zip(self._workers, shares, strict=True) if share]
        for worker, share in busy:
            worker.send((method, None, share))
        return {env: chunk for worker, _ in busy for env, chunk in worker.receive().items()}

    def __enter__(self) -> "EnvPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()


class _Worker:
    def __init__(self, make_episode: MakeEpisode) -> None:
        context = multiprocessing.get_context("forkserver")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make_episode), daemon=True)
        self._process.start()
        theirs.close()

    def send(self, message: tuple) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise self._death() from None

    def receive(self) -> dict[int, Chunk]:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _death(self) -> RuntimeError:
        self._process.join(timeout=5)
        return RuntimeError(f"an env worker died (exit code {self._process.exitcode})")

    def close(self) -> None:
        self._connection.close()  # the worker reads the end of the stream and leaves
        self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()


def _serve(connection: Connection, make_episode: MakeEpisode) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    os.environ["OMP_NUM_THREADS"] = "1"
    episodes: dict[int, Episode] = {}
    while True:
        try:
            method, env, share = connection.recv()
        except (EOFError, OSError):
            return
        answer: Any
        try:
            if method == "make":
                episodes[env] = make_episode()
                continue  # without an answer; an error answers the first request
            answer = {env: getattr(episodes[env], method)(*args) for env, args in share.items()}
        except Exception as error:
            answer = error
        connection.send(answer)

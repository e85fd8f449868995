"""Where an episode runs changes nothing, and a worker that dies costs nothing but time, once."""

import multiprocessing
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from dp.rollouts import pool
from dp.rollouts.episode import Chunk, Episode
from dp.rollouts.pool import EnvPool
from dp.tasks.pusht.env import PushTEnv

DEADLY_SEED = 2


def make_episode() -> Episode:
    return Episode(PushTEnv(["image", "agent_pos"]), n_obs_steps=2)


def make_broken_episode() -> Episode:
    return Episode(PushTEnv(["temperature"]), n_obs_steps=2)


def make_no_episode() -> Episode:
    raise FileNotFoundError("no block to push")


class DeadlyEpisode(Episode):
    """Kills its process at the second chunk of DEADLY_SEED."""

    def reset(self, seed: int, max_steps: int, record: bool) -> Chunk:
        self.deadly = seed == DEADLY_SEED
        return super().reset(seed, max_steps, record)

    def step(self, actions: np.ndarray) -> Chunk:
        if self.deadly and self._steps > 0:
            os._exit(3)
        return super().step(actions)


def make_deadly_episode() -> Episode:
    return DeadlyEpisode(PushTEnv(["agent_pos"]), n_obs_steps=2)


def resets(*envs: int) -> dict[int, tuple[int, int, bool]]:
    return {env: (env, 20, env == 0) for env in envs}


def steps(*envs: int) -> dict[int, np.ndarray]:
    return {env: np.random.default_rng(env).uniform(100, 400, (8, 2)) for env in envs}


def play(pool: EnvPool) -> list[dict[int, Chunk]]:
    """All, then some in another order, then one that begins anew, then one to its end."""
    return [
        pool.reset(resets(0, 1, 2)),
        pool.step(steps(0, 1, 2)),
        pool.step(steps(2, 0)),
        pool.reset(resets(2)),
        pool.step(steps(0)),
    ]


def as_plain(answers: list[dict[int, Chunk]]) -> list[dict[int, tuple]]:
    def plain(chunk: Chunk) -> tuple:
        obs = {name: (x.shape, x.dtype, x.tobytes()) for name, x in chunk.obs.items()}
        frames = [picture.tobytes() for picture in chunk.frames]
        return obs, chunk.rewards, chunk.info, chunk.success, chunk.ended, frames

    return [{env: plain(chunk) for env, chunk in sorted(answer.items())} for answer in answers]


@pytest.fixture(scope="module")
def played_here() -> list[dict[int, tuple]]:
    return as_plain(play(EnvPool(make_episode, n_workers=0)))


@pytest.fixture
def worker_pool() -> Iterator[EnvPool]:
    pool = EnvPool(make_episode, n_workers=2)
    yield pool
    pool.close()


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("arena_bytes", [pool.ARENA_BYTES, 100_000, 0])
def test_chunks_are_the_same_in_this_process_and_in_workers(
    monkeypatch: pytest.MonkeyPatch, played_here: list[dict[int, tuple]], n_workers: int, arena_bytes: int
) -> None:
    monkeypatch.setattr(pool, "ARENA_BYTES", arena_bytes)  # whatever fits into the shared memory, all of it, nothing
    workers = EnvPool(make_episode, n_workers)
    assert multiprocessing.active_children() == []  # none before they are needed
    answers = play(workers)
    assert len(multiprocessing.active_children()) == n_workers
    assert [sorted(answer) for answer in played_here] == [[0, 1, 2], [0, 1, 2], [0, 2], [2], [0]]
    assert as_plain(answers) == played_here  # compared at the end: later answers do not overwrite earlier ones
    workers.close()


def test_workers_that_are_started_early_are_those_that_work_and_what_fails_fails_then(
    worker_pool: EnvPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_pool.start()
    started = {worker.pid for worker in multiprocessing.active_children()}
    assert len(started) == 2
    worker_pool.reset(resets(0))
    assert {worker.pid for worker in multiprocessing.active_children()} == started

    def refuse() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(pool, "forkserver", refuse)
    with pytest.raises(OSError, match="too long"):
        EnvPool(make_episode, n_workers=1).start()


def test_arrays_travel_through_shared_memory_and_not_through_the_pipe() -> None:
    arrays = [np.arange(10.0), np.arange(1000, dtype=np.uint8)]
    memory = memoryview(bytearray(1010))
    pickled, buffers = pool._pack(arrays, memory)
    assert buffers == [slice(0, 80), arrays[1].tobytes()]  # the second does not fit beside the first
    assert memory[:80] == arrays[0].tobytes()
    assert len(pickled) < 300


def test_workers_stay_from_one_rollout_to_the_next_and_closing_ends_them(worker_pool: EnvPool) -> None:
    pids = []
    for _ in range(2):
        worker_pool.reset(resets(0, 1))
        pids.append({worker.pid for worker in multiprocessing.active_children()})
    assert pids[0] == pids[1]
    assert len(pids[0]) == 2
    children = multiprocessing.active_children()
    worker_pool.close()
    assert [worker.exitcode for worker in children] == [0, 0]  # they left by themselves
    assert as_plain([worker_pool.reset(resets(1))]) == as_plain([EnvPool(make_episode, 0).reset(resets(1))])


@pytest.mark.parametrize("when", ["before the request", "while it is answered"])
def test_a_dead_worker_is_replaced_and_its_episodes_run_again(
    worker_pool: EnvPool, played_here: list[dict[int, tuple]], when: str
) -> None:
    answers = [worker_pool.reset(resets(0, 1, 2)), worker_pool.step(steps(0, 1, 2))]
    victim = worker_pool._worker(0)._process  # of episodes 0 and 2
    if when == "before the request":
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
    else:
        os.kill(victim.pid, signal.SIGSTOP)  # it takes the request and cannot answer
        signal.signal(signal.SIGALRM, lambda *_: os.kill(victim.pid, signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
    answers += [worker_pool.step(steps(2, 0)), worker_pool.reset(resets(2)), worker_pool.step(steps(0))]
    assert as_plain(answers) == played_here
    assert victim.exitcode == -signal.SIGKILL
    assert len(multiprocessing.active_children()) == 2


def test_a_rollout_that_is_interrupted_leaves_a_pool_that_works(
    worker_pool: EnvPool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def ctrl_c(_: object) -> None:
        raise KeyboardInterrupt

    worker_pool.reset(resets(0, 1, 2))
    with monkeypatch.context() as patched:
        patched.setattr(pool._Worker, "receive", ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            worker_pool.step(steps(0, 1, 2))  # the workers are busy when Ctrl-C comes
    assert multiprocessing.active_children() == []
    again = as_plain([worker_pool.reset(resets(0, 1, 2)), worker_pool.step(steps(0, 1, 2))])
    here = EnvPool(make_episode, n_workers=0)
    assert again == as_plain([here.reset(resets(0, 1, 2)), here.step(steps(0, 1, 2))])
    assert "Traceback" not in capfd.readouterr().err


def test_an_episode_that_kills_its_worker_twice_is_an_error_with_its_seed() -> None:
    deadly = EnvPool(make_deadly_episode, n_workers=1)
    deadly.reset(resets(1, DEADLY_SEED, 3))
    deadly.step(steps(1, DEADLY_SEED, 3))
    with pytest.raises(RuntimeError, match=r"died \(exit code 3\) for the second time while running .* of seed 2$"):
        deadly.step(steps(1, DEADLY_SEED, 3))
    assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_twice_over_the_same_episodes_is_an_error_with_their_seeds(
    worker_pool: EnvPool,
) -> None:
    worker_pool.reset({0: (70, 20, False), 1: (71, 20, False), 2: (72, 20, False)})
    for _ in range(2):
        os.kill(worker_pool._worker(0)._process.pid, signal.SIGKILL)
        if worker_pool._running[0].deaths == 0:
            worker_pool.step(steps(0, 1, 2))
    with pytest.raises(RuntimeError, match=r"exit code -9\) for the second time .* seed 70 or 72$"):
        worker_pool.step(steps(0, 1, 2))


def test_episodes_that_have_ended_do_not_run_again(worker_pool: EnvPool) -> None:
    worker_pool.reset({0: (0, 4, False), 2: (2, 20, False)})
    assert worker_pool.step(steps(0, 2))[0].ended
    os.kill(worker_pool._worker(0)._process.pid, signal.SIGKILL)
    assert list(worker_pool.step(steps(2))) == [2]
    assert list(worker_pool._running) == [2]


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (make_broken_episode, pytest.raises(ValueError, match="PushT has no observation")),
        (make_no_episode, pytest.raises(FileNotFoundError, match="no block to push")),
    ],
)
def test_an_error_in_an_environment_is_raised_here(
    make: pool.MakeEpisode, error: pytest.RaisesExc, n_workers: int
) -> None:
    with error:
        EnvPool(make, n_workers).reset(resets(0, 1))
    assert multiprocessing.active_children() == []

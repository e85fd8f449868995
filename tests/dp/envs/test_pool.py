"""Where an episode runs changes nothing, and no failure of a worker goes unnoticed."""

import multiprocessing
import os
import signal

import numpy as np
import pytest

from dp.envs import PushTEnv
from dp.envs.episode import Chunk, Episode
from dp.envs.pool import EnvPool

N_ENVS = 3


def make_episode() -> Episode:
    return Episode(PushTEnv(["agent_pos"]), n_obs_steps=2)


def make_broken_episode() -> Episode:
    return Episode(PushTEnv(["temperature"]), n_obs_steps=2)


def make_no_episode() -> Episode:
    raise FileNotFoundError("no block to push")


def resets(*envs: int) -> dict[int, tuple[int, int, bool]]:
    return {env: (env, 12, env == 0) for env in envs}


def steps(*envs: int) -> dict[int, np.ndarray]:
    return {env: np.random.default_rng(env).uniform(100, 400, (8, 2)) for env in envs}


def play(pool: EnvPool) -> list[dict[int, Chunk]]:
    """All, then some in another order, then one that begins anew."""
    return [pool.reset(resets(0, 1, 2)), pool.step(steps(0, 1, 2)), pool.step(steps(2, 0)), pool.reset(resets(2))]


def as_plain(chunk: Chunk) -> tuple:
    obs = {name: x.tolist() for name, x in chunk.obs.items()}
    frames = [picture.tobytes() for picture in chunk.frames]
    return obs, chunk.rewards, chunk.coverage, chunk.success, chunk.ended, frames


def test_chunks_are_the_same_in_this_process_and_in_any_number_of_workers() -> None:
    played = []
    for n_workers in (0, 1, 2):
        with EnvPool(make_episode, N_ENVS, n_workers) as pool:
            assert len(multiprocessing.active_children()) == n_workers
            answers = play(pool)
        played.append([{env: as_plain(chunk) for env, chunk in sorted(answer.items())} for answer in answers])
    assert [sorted(answer) for answer in played[0]] == [[0, 1, 2], [0, 1, 2], [0, 2], [2]]
    assert played[0] == played[1] == played[2]


def test_there_are_no_more_workers_than_environments_and_closing_ends_them() -> None:
    with EnvPool(make_episode, n_envs=1, n_workers=4):
        (worker,) = multiprocessing.active_children()
    assert not worker.is_alive()
    assert worker.exitcode == 0  # it left by itself
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("when", ["before the request", "while it is answered"])
def test_a_dead_worker_is_an_error_and_not_a_wait(when: str) -> None:
    with EnvPool(make_episode, n_envs=1, n_workers=1) as pool:
        pool.reset(resets(0))
        (worker,) = multiprocessing.active_children()
        if when == "before the request":
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        else:
            os.kill(worker.pid, signal.SIGSTOP)  # it cannot answer before it dies
            pool._workers[0].send(("step", None, {}))
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"env worker died \(exit code -9\)"):
            pool.step(steps(0)) if when == "before the request" else pool._workers[0].receive()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("n_workers", [0, 1])
def test_an_error_in_an_environment_is_raised_here(n_workers: int) -> None:
    with (
        pytest.raises(ValueError, match="PushT has no observation"),
        EnvPool(make_broken_episode, n_envs=2, n_workers=n_workers) as pool,
    ):
        pool.reset(resets(0, 1))
    assert multiprocessing.active_children() == []


def test_an_error_in_making_an_episode_is_raised_here() -> None:
    with (
        pytest.raises(FileNotFoundError, match="no block to push"),
        EnvPool(make_no_episode, n_envs=2, n_workers=2) as pool,
    ):
        pool.reset(resets(0, 1))
    assert multiprocessing.active_children() == []

"""Meta-World and Block Push give the same to the bit, however they are run and however often they are killed."""

import importlib.util
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dp.rollouts.episode import Episode
from dp.rollouts.pool import EnvPool
from tests.cli import Forks
from tests.dp.rollouts.test_pool import as_plain
from tests.workspaces.conftest import assert_same_run

KILLS = int(os.environ.get("DP_TEST_KILLS", "1"))

PACKAGES = {"metaworld": "metaworld", "blockpush": "pybullet"}

COLLECT = {
    "metaworld": ["task=metaworld", "task.name=push-v3", "collector=scripted"],
    "blockpush": ["task=blockpush_state", "collector=blockpush"],
}

TRAIN = [
    "dataset.n_episodes=3", "device=cpu", "n_threads=1", "logger.mode=disabled", "workspace.num_steps=6",
    "workspace.batch_size=4", "workspace.precision=fp32", "dataset.val_ratio=0.3",
    "workspace.every={log: 2, validate: 3, rollout: 6, checkpoint: 1}", "lr_schedule.num_warmup_steps=1",
    "denoiser.channels=[16,32]", "denoiser.step_embed_dim=16", "scheduler.num_inference_steps=2",
    "env_runner.n_episodes=2", "env_runner.max_steps=20", "env_runner.n_train_episodes=1", "env_runner.n_workers=0",
    "env_runner.n_videos=0",
]  # fmt: skip

EXPERIMENTS = {
    "metaworld": ["+experiment=metaworld_state_small", "task.name=push-v3"],
    "blockpush": ["+experiment=blockpush_state_small"],
}


@pytest.fixture(scope="module", params=PACKAGES)
def name(request: pytest.FixtureRequest) -> str:
    if importlib.util.find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"needs the extra {request.param}")
    return request.param


@pytest.fixture(scope="module")
def fork(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., dict[str, Any]]]:
    """Runs a command in the folder of this module, and kills it after `after_s`, if that is given."""
    place = tmp_path_factory.mktemp("killed")
    log = place / "log"
    with closing(Forks()) as forks:

        def call(arguments: list[str], after_s: float | None = None) -> dict[str, Any]:
            life = forks.run(arguments, place, stdout=str(log), stderr=str(log), counts=False, after_s=after_s)
            killed = after_s is not None and life["returncode"] == -signal.SIGKILL
            assert killed or life["returncode"] == 0, log.read_text()
            return life | {"killed": killed, "place": place}

        yield call


def kill_again_and_again(
    fork: Callable[..., dict[str, Any]], command: list[str], key: str, name: str, same: Callable[[Path, Path], None]
) -> None:
    """Compares what `command` leaves at `key` when it runs undisturbed and when it is killed at random and repeated."""
    rng, kills, runs = random.Random(0), 0, 0
    whole = fork([*command, f"{key}={name}-whole"])
    while kills < KILLS:
        finished, runs = False, runs + 1
        while not finished:
            after_s = rng.uniform(0, whole["seconds"]) if kills < KILLS else None
            life = fork([*command, f"{key}={name}-{runs}"], after_s)
            kills, finished = kills + life["killed"], not life["killed"]
        same(whole["place"] / f"{name}-whole", whole["place"] / f"{name}-{runs}")
    sys.stdout.write(f"{name}: {runs} runs, {kills} kills")


def assert_same_files(one: Path, other: Path) -> None:
    files = [{p.relative_to(at): p.read_bytes() for p in at.rglob("*") if p.is_file()} for at in (one, other)]
    assert len(files[0]) > 10
    assert files[0] == files[1]


def test_a_collection_that_is_killed_goes_on_to_the_same_store(name: str, fork: Callable[..., dict[str, Any]]) -> None:
    command = ["workspace=collect", *COLLECT[name], "workspace.n_episodes=8", "workspace.n_workers=0"]
    kill_again_and_again(fork, command, "workspace.path", f"{name}-store", assert_same_files)


def test_a_training_that_is_killed_goes_on_to_the_same_policy(name: str, fork: Callable[..., dict[str, Any]]) -> None:
    kill_again_and_again(fork, [*EXPERIMENTS[name], *TRAIN], "run_dir", f"{name}-run", assert_same_run)


def make_episode(name: str) -> Episode:
    if name == "metaworld":
        from dp.tasks.metaworld import MetaWorldEnv

        return Episode(MetaWorldEnv(["hand", "objects", "goal"], ["push-v3"]), n_obs_steps=2)
    from dp.tasks.blockpush import BlockPushEnv
    from dp.tasks.blockpush.oracle import OBS_NAMES

    return Episode(BlockPushEnv(OBS_NAMES), n_obs_steps=2)


def play(pool: EnvPool, name: str, *envs: int, kill: bool = False) -> list[dict[int, tuple]]:
    """Three chunks of actions towards the table's middle in the episodes `envs`. `kill`: a worker, after the second."""
    size, scale = {"metaworld": (4, 1.0), "blockpush": (2, 0.03)}[name]
    answers = [pool.reset({env: (env, 40, False) for env in envs})]
    for chunk in range(3):
        if kill and chunk == 2:
            os.kill(pool._worker(0)._process.pid, signal.SIGKILL)
        answers.append(
            pool.step({env: scale * np.random.default_rng([env, chunk]).uniform(0, 1, (8, size)) for env in envs})
        )
    pool.close()
    return as_plain(answers)


def test_rollouts_depend_neither_on_workers_nor_on_their_number_nor_on_their_deaths(name: str) -> None:
    make = partial(make_episode, name)
    alone = [play(EnvPool(make, 0), name, env) for env in (1, 2, 3)]
    together = [{env: chunk for one in alone for env, chunk in one[n].items()} for n in range(len(alone[0]))]
    assert play(EnvPool(make, 0), name, 1, 2, 3) == together
    assert play(EnvPool(make, 2), name, 1, 2, 3, kill=True) == together

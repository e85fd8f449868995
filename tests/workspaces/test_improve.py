"""`workspace=improve` of a task from the user's own package, as a user types it."""

import contextlib
import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from dp.data.recording import last_seed, n_episodes
from tests.cli import Forks
from tests.workspaces.conftest import assert_same_run
from workspaces import record

KILLS = int(os.environ.get("DP_TEST_KILLS", 1))

IMPROVE = [
    "workspace=improve",
    "+experiment=reach",
    "dataset.path=demos.zarr",
    "trust=[toylab]",
    "device=cpu",
    "n_threads=1",
    "env_runner.n_workers=0",
    "logger.mode=disabled",
    "workspace.n_rounds=1",
    "workspace.every.log=3",
    'workspace.start="workspace.num_steps=6 env_runner.n_episodes=2"',
    'workspace.train="workspace.num_steps=4 env_runner.n_episodes=2"',
    'workspace.collect="collector=takeover workspace.n_episodes=2 workspace.n_workers=0 env_runner.max_steps=6"',
    'workspace.critic="workspace.n_episodes=2 workspace.n_plans=2 workspace.num_steps=10 workspace.width=16"',
    'workspace.evaluate="env_runner.start_seed=700 env_runner.n_episodes=2"',
]

CARTPOLE = "{obs: {observation: {type: low_dim, shape: [4]}}, action: {shape: [1]}}"

STAGES = ("round-0-train", "round-0-evaluate", "round-1-collect", "round-1-train", "round-1-evaluate")


def contents(store: Path) -> dict[str, np.ndarray]:
    group = zarr.open_group(str(store), mode="r")
    return {name: array[:] for name, array in group.members(max_depth=None) if isinstance(array, zarr.Array)}


def assert_same_rounds(one: Path, other: Path) -> None:
    for name in ("round-0-train", "round-1-train"):
        assert_same_run(one / name, other / name)
    for name in ("round-0-evaluate", "round-1-evaluate", "round-1-guided"):
        rows = [json.loads((place / name / "evaluation.json").read_text())["episodes"] for place in (one, other)]
        assert rows[0] == rows[1]
    stores = [contents(place / "round-1-collect/collected.zarr") for place in (one, other)]
    assert stores[0].keys() == stores[1].keys()
    assert all(np.array_equal(array, stores[1][name]) for name, array in stores[0].items())
    critics = [(place / "round-1-critic/critic.safetensors").read_bytes() for place in (one, other)]
    assert critics[0] == critics[1]


@pytest.fixture(scope="module")
def improve(place):
    with contextlib.closing(Forks()) as forks:

        def call(where: Path, *overrides: str, **order: object) -> dict[str, object]:
            log = where / "log"
            log.unlink(missing_ok=True)
            base = [] if "workspace=report" in overrides else IMPROVE
            names = [o.partition("=")[0] for o in overrides]
            given = [o for o in base if o.partition("=")[0] not in names] + list(overrides)
            given = [o.replace("demos.zarr", str(place / "demos.zarr")) for o in given]
            typed, env = (
                ["--config-dir", str(place / "toylab/configs"), *given],
                {**os.environ, "PYTHONPATH": str(place)},
            )
            life = forks.run(typed, where, env, stdout=str(log), stderr=str(log), counts=True, **order)
            return life | {"said": log.read_text()}

        yield call


@pytest.fixture(scope="module")
def whole(improve, tmp_path_factory):
    """Where an uninterrupted run lies, and how it went."""
    where = tmp_path_factory.mktemp("improve")
    life = improve(where, "run_dir=whole")
    assert life["returncode"] == 0, life["said"]
    return where, life


def test_every_stage_is_an_ordinary_run_and_the_rounds_are_told(whole, improve):
    where, life = whole
    for name in (*STAGES, "round-1-critic", "round-1-guided"):
        assert record.state_of(where / "whole" / name) == "finished"
        assert f"{name}: python run.py" in life["said"]
    store = where / "whole/round-1-collect/collected.zarr"
    assert n_episodes(store) == 2
    config = (where / "whole/round-1-train/config.yaml").read_text()
    assert str(store) in config
    assert "init_from: whole/round-0-train" in config
    rows = [line.split() for line in life["said"].splitlines() if line.endswith("2 episodes, seeds 700-701")]
    assert [row[0] for row in rows] == ["0", "1", "1,"]
    # Another round goes on from there, on other seeds.
    more = improve(where, "run_dir=whole", "workspace.n_rounds=2", "workspace.critic=null")
    assert more["returncode"] == 0, more["said"]
    assert "round-1-collect: python" not in more["said"]
    second = where / "whole/round-2-collect/collected.zarr"
    assert contents(second)["meta/seed"][0] == last_seed(store) + 1
    # The report tells them.
    reported = improve(where, "runs=whole", "workspace=report")
    assert reported["returncode"] == 0, reported["said"]
    rows = (where / "whole/report/tables/rounds.csv").read_text().splitlines()
    assert [row.split(",")[:3] for row in rows[1:]] == [
        ["0", "none", "–"], ["1", "none", "2"], ["1", "learned critic", "–"], ["2", "none", "2"]
    ]  # fmt: skip
    assert (where / "whole/report/figures/rounds.png").is_file()
    settings = (where / "whole/report/tables/results.csv").read_text().splitlines()[0].split(",")
    assert settings[:3] == ["round", "guidance", "score"]


def test_killed_again_and_again_its_rounds_are_the_same(whole, improve, tmp_path):
    where, life = whole
    rng, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        finished, runs = False, runs + 1
        while not finished:
            death = {"after_s": rng.uniform(0, 0.8 * life["seconds"])} if kills < KILLS else {}
            again = improve(tmp_path, f"run_dir=killed-{runs}", **death)
            finished = again["returncode"] == 0
            assert finished or again["returncode"] == -signal.SIGKILL, again["said"]
            kills += not finished
        assert_same_rounds(where / "whole", tmp_path / f"killed-{runs}")
    sys.stdout.write(f"{runs} runs, {kills} kills")


def test_mistakes_are_one_line(whole, improve):
    where, _ = whole
    for overrides, said in (
        (["run_dir=whole", "workspace.afresh=true"], "whole holds rounds with other settings (workspace.afresh=false"),
        (['workspace.train="a"b"'], "workspace.train"),
        (['workspace.train="workspace.num_step=3"'], "workspace.train: "),
        (['workspace.collect="collector=takeovers"'], "workspace.collect: "),
        (
            ["task=gymnasium", "task.env.id=CartPole-v1", f"task.shape_meta={CARTPOLE}"],
            "no expert that could take over (Task.expert)",
        ),
        (['workspace.evaluate="env_runner.start_seed=399 env_runner.n_episodes=2"'], "Expected one from 400 on"),
        (['workspace.evaluate="env_runner.start_sed=700"'], "Did you mean env_runner.start_seed"),
        (
            ['workspace.collect="collector=takeover workspace.start_seed=400"'],
            "workspace.start_seed=400, expected 0 to",
        ),
        (
            ["checkpoint=whole/round-0-train", "denoiser.channels=[8,16]", "run_dir=other"],
            "is of another architecture: denoiser",
        ),
        (["task.env=null"], "has no simulator (task.env=null): no policy can practise there"),
        (['workspace.evaluate="checkpoint=elsewhere"'], "leave out checkpoint=elsewhere. The rounds set checkpoint"),
        (['workspace.collect="collector=takeover workspace.path=x"'], "leave out workspace.path=x. The rounds set"),
        (['workspace.critic="workspace.start_seed=400"'], "workspace.start_seed=400, expected 0 to"),
        (['workspace.start="workspace=evaluate"'], "leave out workspace=evaluate. The rounds set workspace"),
    ):
        result = improve(where, *overrides)
        assert result["returncode"] == 1
        assert said in result["said"]
        assert "Traceback" not in result["said"]

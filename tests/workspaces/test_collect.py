"""`workspace=collect`, as a user types it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from dp.tasks.pusht.store import ReplayBuffer, read_facts
from tests.cli import RUN, run_py
from tests.workspaces.wander import Wander
from workspaces import build
from workspaces.collect import Filter

GUIDED = ("guidance=best_of_n", "guidance.critic=coherence")
STORE = Path("data/collected.zarr")


@pytest.fixture
def typed(tmp_path):
    (tmp_path / "configs/collector").mkdir(parents=True)
    (tmp_path / "configs/collector/wander.yaml").write_text(
        "_target_: tests.workspaces.wander.Wander\nn_steps: 12\ndies_at: null\n"
    )
    flags = [sys.executable, str(RUN), "--config-dir", str(tmp_path / "configs"), "workspace=collect"]

    def make(*overrides):
        return [*flags, "collector=wander", "workspace.filter.success_only=false", *overrides]

    return make


@pytest.fixture
def collect(typed, tmp_path):
    def call(*overrides):
        return run_py(*typed(*overrides)[2:], cwd=tmp_path, timeout=120)

    return call


def contents(store):
    buffer = ReplayBuffer.load(store, ["state", "action", "noise"])
    return buffer.sha256(), buffer.seeds.tolist()


def test_it_resumes_whatever_the_number_of_processes_and_says_what_it_made(collect, tmp_path):
    first = collect("workspace.n_episodes=3", "workspace.n_workers=0")
    assert first.returncode == 0, first.stderr
    more = collect("workspace.n_episodes=7", "workspace.n_workers=2")
    assert more.returncode == 0, more.stderr
    once = collect("workspace.n_episodes=7", "workspace.n_workers=3", "workspace.path=once.zarr")
    assert contents(tmp_path / STORE) == contents(tmp_path / "once.zarr")
    assert contents(tmp_path / STORE)[1] == [1001, 1002, 1003, 1004, 1006, 1007, 1008]
    assert "2 left out (given up by the collector)" in once.stderr
    for said in (
        f"frames: 7, {sum(12 + seed % 7 for seed in contents(tmp_path / STORE)[1])}",
        "7 wander",
        f"dataset.path={STORE}",
        "collected.zarr, 0.0 MB",
    ):
        assert said in more.stderr
    refused = collect("workspace.n_episodes=9", "collector.n_steps=13")
    assert refused.returncode == 1
    assert "collector.n_steps=12 there, 13 here" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert contents(tmp_path / STORE) == contents(tmp_path / "once.zarr")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("workspace.start_seed=205", "expected 206 to 99999"),
        ("workspace.start_seed=100000", "expected 206 to 99999"),
        ("workspace.n_episodes=0", "workspace.n_episodes=0, expected"),
        ("workspace.filter.min_final_coverage=95", "expected a number of at least 0 and at most 1 or null"),
        ("workspace.filter.min_final=0.9", r"expected keys with values, \{key: value\}"),
        ("+workspace.filter.foo=1", "unknown key workspace.filter.foo. Known: success_only"),
        ("seed=1", "this collector runs a policy: set checkpoint=PATH"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(override, expected):
    with initialize_config_dir(str(RUN.parent / "configs"), version_base="1.3"):
        composed = compose("config", ["workspace=collect", "collector=checkpoint", override])
    with pytest.raises(ValueError, match=expected):
        build.workspace(composed)


def test_a_worker_that_dies_is_told_and_costs_nothing_that_was_made(collect, tmp_path):
    result = collect("workspace.n_workers=1", "collector.dies_at=1004")
    assert result.returncode == 1
    assert "a worker process died while it worked on one of" in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(tmp_path / STORE)[1] == [1001, 1002, 1003][: len(contents(tmp_path / STORE)[1])]


def begin(typed, tmp_path):
    """A collection without end, which has made something."""
    process = subprocess.Popen(typed("workspace.n_episodes=90000"), cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    ends = tmp_path / STORE / "meta/episode_ends/.zarray"
    while not ends.exists() or json.loads(ends.read_text())["shape"] == [0]:
        assert process.poll() is None
        time.sleep(0.05)
    return process


def test_a_signal_ends_it_cleanly_sigkill_hurts_nothing_and_a_second_process_is_refused(typed, collect, tmp_path):
    process = begin(typed, tmp_path)
    second = collect("workspace.n_episodes=90000")
    assert second.returncode == 1
    assert "in use by another process" in second.stderr
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"SIGTERM: {STORE} holds" in said
    assert "Traceback" not in said

    process = begin(typed, tmp_path)
    time.sleep(0.3)
    process.kill()
    process.wait()
    seeds = contents(tmp_path / STORE)[1]
    more = collect(f"workspace.n_episodes={len(seeds) + 4}")
    assert more.returncode == 0, more.stderr
    _, seeds = contents(tmp_path / STORE)
    assert seeds == [seed for seed in range(1001, seeds[-1] + 1) if seed % 5]


def test_the_filter_keeps_what_passes():
    demonstration = Wander()(1001)
    assert Filter().objection(demonstration) is None
    assert Filter().objection(None) == "given up by the collector"
    assert Filter(success_only=True).objection(demonstration) == "no success"
    assert Filter(min_final_coverage=0.9).objection(demonstration) == "final coverage below 0.9"
    assert Filter(min_final={"coverage": 0.9}).objection(demonstration) == "final coverage below 0.9"
    assert Filter(min_final={"coverage": 0.0}).objection(demonstration) is None
    with pytest.raises(ValueError, match=r"min_final has height, expected some of \['coverage'\]"):
        Filter(min_final={"height": 1}).objection(demonstration)
    assert Filter(max_length=11).objection(demonstration) == "longer than 11 steps"
    assert Filter(max_length=12).objection(demonstration) is None


def test_a_policy_demonstrates_what_it_does_in_an_evaluation(run, tmp_path):
    assert run("run_dir=trained").returncode == 0
    roll = ["checkpoint=trained", "device=cpu", "logger.mode=disabled"]
    roll += ["env_runner.max_steps=20", "env_runner.n_workers=0"]
    collect = [*roll, "workspace=collect", "collector=checkpoint", "workspace.filter.success_only=null"]
    for path, n_episodes, n_envs in (("a", 2, 1), ("a", 5, 3), ("b", 5, 8)):
        made = [*collect, f"workspace.path={path}", f"workspace.n_episodes={n_episodes}", f"env_runner.n_envs={n_envs}"]
        result = run_py(*made, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")[1] == list(range(1000, 1005))
    evaluated = [*roll, "workspace=evaluate", "run_dir=e", "env_runner.n_episodes=5", "env_runner.start_seed=1000"]
    assert run_py(*evaluated, cwd=tmp_path).returncode == 0
    rows = json.loads((tmp_path / "e/evaluation.json").read_text())["episodes"]
    facts = read_facts(tmp_path / "a")
    assert facts["final_coverage"].tolist() == [row["final_coverage"] for row in rows]
    lengths = np.diff(ReplayBuffer.load(tmp_path / "a", []).episode_ends, prepend=0)
    assert lengths.tolist() == [row["length"] for row in rows]
    assert set(facts["source"]) == {"checkpoint"}
    guided = run_py(*collect, "workspace.path=a", "workspace.n_episodes=6", *GUIDED, cwd=tmp_path)
    assert 'a was collected with other settings (guidance._target_=null there, "dp.guidance' in guided.stderr


def test_what_a_person_keeps_is_stored_and_the_window_counts_the_store(tmp_path, monkeypatch):
    counted = []

    def keep(self, seed):
        counted.append(self.n_stored)
        return Wander()(seed)  # no success; None for every fifth seed, as if skipped

    monkeypatch.setattr("dp.tasks.pusht.mouse.Mouse.__call__", keep)
    with initialize_config_dir(str(RUN.parent / "configs"), version_base="1.3"):
        for n_episodes in (2, 5):
            typed = [f"workspace.n_episodes={n_episodes}", f"workspace.path={tmp_path / 'mine.zarr'}"]
            build.workspace(compose("config", ["workspace=collect", "collector=mouse", *typed])).run()
    assert contents(tmp_path / "mine.zarr")[1] == [1001, 1002, 1003, 1004, 1006]
    assert counted == [0, 0, 1, 2, 3, 4, 4]

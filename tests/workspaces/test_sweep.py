"""Sweeps as users run them: other processes, real runs, real kills."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli import RUN, run_py
from tests.workspaces.conftest import assert_same_run
from workspaces import record
from workspaces.base import create_new
from workspaces.sweep import _progress, read_manifest

DRY = [
    "workspace=evaluate",
    "workspace.baseline=do_nothing",
    "task=pusht_state",
    "env_runner.n_episodes=1",
    "env_runner.n_workers=0",
    "env_runner.n_videos=0",
    "logger.mode=disabled",
    "n_threads=1",
]
"""Jobs of hardly any work, whose score depends on env_runner.max_steps."""

SLOW = ["workspace.num_steps=150", "workspace.every={log: 50, validate: 150, rollout: 150, checkpoint: 5}"]


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def sweep(*overrides: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return run_py("-m", *overrides, cwd=cwd, timeout=timeout)


def manifest(folder: Path) -> list[dict]:
    return json.loads((folder / "sweep.json").read_text())["jobs"]


def states(folder: Path) -> dict[str, str]:
    return {job["dir"]: record.state_of(folder / job["dir"]) for job in manifest(folder)}


def begun(folder: Path) -> dict[str, tuple]:
    """What changes when a job is run again."""
    records = {job["dir"]: record.read(folder / job["dir"]) for job in manifest(folder)}
    return {name: (held["pid"], held["begun"], held["ended"]) for name, held in records.items()}


def wait_for(what, seconds: float = 60) -> None:
    deadline = time.time() + seconds
    while not what():
        assert time.time() < deadline, "it did not happen"
        time.sleep(0.02)


def test_training_settings_are_trained_once_and_finished_jobs_not_run_again(run, tmp_path):
    grid = ["horizon=8,16", "scheduler.num_inference_steps=2,3", "logger.group=mine", "scheduler=ddim,ddpm"]
    result = run("-m", *grid)
    assert result.returncode == 0, result.stderr
    folder = next((tmp_path / "multirun").iterdir())
    assert set(states(folder).values()) == {"finished"}
    trained = [job["dir"] for job in manifest(folder) if job["verb"] == "train"]
    evaluated = [job["dir"] for job in manifest(folder) if job["verb"] == "evaluate"]
    assert trained == ["train+horizon-8", "train+horizon-16"]
    assert len(evaluated) == 8
    for name in evaluated:
        settings = json.loads((folder / name / "evaluation.json").read_text())["settings"]
        assert f"horizon-{settings['horizon']}+" in name
        assert f"num_inference_steps-{settings['scheduler']['num_inference_steps']}" in name
        assert settings["n_action_steps"] == {8: 7, 16: 8}[settings["horizon"]]
        assert ("DDPM" in settings["scheduler"]["_target_"]) == ("scheduler-ddpm" in name)

    before = begun(folder)
    again = run("-m", *grid)
    assert again.returncode == 0, again.stderr
    assert begun(folder) == before
    more = run("-m", *[o.replace("2,3", "2,3,4") for o in grid])
    assert more.returncode == 0, more.stderr
    assert {name: value for name, value in begun(folder).items() if name in before} == before
    assert len(manifest(folder)) == 2 + 12


def test_a_failing_job_stops_no_other_and_is_tried_again(run, tmp_path):
    grid = ["-m", "optimizer.lr=1e9,1e-3", "workspace.max_grad_norm=inf", "hydra.sweep.dir=here"]
    result = run(*grid)
    assert result.returncode == 1
    assert states(tmp_path / "here") == {"lr-1000000000.0": "failed", "lr-0.001": "finished"}
    assert "lr-1000000000.0 failed: training diverged at step" in result.stderr
    assert "1 of 2 jobs have not finished. To go on: python" in result.stderr
    before = begun(tmp_path / "here")
    assert run(*grid).returncode == 1
    after = begun(tmp_path / "here")
    assert after["lr-0.001"] == before["lr-0.001"]
    assert after["lr-1000000000.0"] != before["lr-1000000000.0"]


def test_a_job_that_cannot_begin_is_listed_too(tmp_path):
    result = sweep(*DRY, "env_runner.max_steps=0,5", "hydra.sweep.dir=here", cwd=tmp_path)
    assert result.returncode == 1
    assert states(tmp_path / "here") == {"max_steps-0": "failed", "max_steps-5": "finished"}
    assert "max_steps-0 failed: env_runner.max_steps=0, expected a whole number of at least 1" in result.stderr


def test_a_sweep_that_was_killed_goes_on_to_the_bit(command, run, tmp_path):
    grid = ["-m", "seed=0,1", *SLOW, "hydra.sweep.dir=here"]
    with subprocess.Popen(command(*grid), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: (tmp_path / "here/seed-0/checkpoints/last.pt").is_file())
        process.kill()
    assert states(tmp_path / "here") == {"seed-0": "interrupted", "seed-1": "waiting"}
    result = run(*grid)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stderr
    assert set(states(tmp_path / "here").values()) == {"finished"}
    assert run("seed=0", *SLOW, "run_dir=alone").returncode == 0
    assert_same_run(tmp_path / "here/seed-0", tmp_path / "alone")


def test_ctrl_c_saves_the_job_and_stops_the_sweep(command, tmp_path):
    grid = ["-m", "seed=0,1", *SLOW, "hydra.sweep.dir=here"]
    with subprocess.Popen(command(*grid), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (tmp_path / "here/seed-0/checkpoints/last.pt").is_file())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved at step" in stderr
    assert states(tmp_path / "here") == {"seed-0": "interrupted", "seed-1": "waiting"}


@needs("hydra_plugins.hydra_joblib_launcher")
def test_a_job_that_is_killed_is_resumed_in_the_same_sweep(command, tmp_path):
    grid = ["-m", "seed=0,1,2", *SLOW, "hydra.sweep.dir=here", "+launcher=joblib", "hydra.launcher.n_jobs=2"]
    with subprocess.Popen(command(*grid), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: (tmp_path / "here/seed-0/checkpoints/last.pt").is_file())
        os.kill(record.read(tmp_path / "here/seed-0")["pid"], signal.SIGKILL)
        _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert "the launcher stopped" in stderr
    assert "resuming" in stderr
    assert set(states(tmp_path / "here").values()) == {"finished"}


@needs("hydra_plugins.hydra_joblib_launcher")
def test_many_jobs_at_once_have_a_directory_each(tmp_path):
    result = sweep(
        *DRY, "seed=range(24)", "env_runner.max_steps=1", "hydra.sweep.dir=here", "+launcher=joblib",
        "hydra.launcher.n_jobs=4", cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert states(tmp_path / "here") == {f"seed-{n}": "finished" for n in range(24)}
    directories = {path.name for path in (tmp_path / "here").iterdir() if path.is_dir()}
    assert directories == {f"seed-{n}" for n in range(24)}


@needs("hydra_plugins.hydra_submitit_launcher")
def test_submitit_runs_the_same_sweep(tmp_path):
    result = sweep(*DRY, "env_runner.max_steps=0,2,4", "hydra.sweep.dir=here", "+launcher=submitit_local", cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert states(tmp_path / "here") == {"max_steps-0": "failed", "max_steps-2": "finished", "max_steps-4": "finished"}
    assert "max_steps-0 failed: env_runner.max_steps=0, expected a whole number of at least 1" in result.stderr


@pytest.mark.skipif("DP_TEST_RAY" not in os.environ, reason="a minute: set DP_TEST_RAY=1")
@needs("hydra_plugins.hydra_ray_launcher")
def test_a_ray_cluster_of_two_machines_shares_the_jobs(tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        typed = [
            *DRY, "env_runner.n_episodes=200", "env_runner.max_steps=0,300,299", "hydra.sweep.dir=here",
            "+launcher=ray", f"hydra.launcher.ray.init.address='{cluster.address}'",
        ]  # fmt: skip
        command = [sys.executable, str(RUN), "-m", *typed]  # Ray hangs in a fork
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    finally:
        cluster.shutdown()
    assert states(tmp_path / "here") == {
        "max_steps-0": "failed",
        "max_steps-300": "finished",
        "max_steps-299": "finished",
    }
    assert "max_steps-0 failed: env_runner.max_steps=0, expected a whole number of at least 1" in result.stderr
    one, other = (record.read(tmp_path / "here" / name) for name in ("max_steps-300", "max_steps-299"))
    assert one["pid"] != other["pid"]
    assert max(one["begun"], other["begun"]) < min(
        one["ended"], other["ended"]
    )  # a machine has one core: two were used


@needs("optuna")
def test_a_search_that_was_killed_goes_on(tmp_path):
    words = [*DRY, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "env_runner.max_steps=range(1,200)"]
    words += ["env_runner.n_episodes=20", "hydra.sweep.dir=here"]
    command = [sys.executable, str(RUN), "-m", *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: list((tmp_path / "here").glob("0002*/run.json")))
        process.kill()
    result = sweep(*words, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert sorted(name[:4] for name in states(tmp_path / "here")) == [f"{n:04d}" for n in range(6)]
    assert set(states(tmp_path / "here").values()) == {"finished"}
    scores = {name: record.read(tmp_path / "here" / name)["score"] for name in states(tmp_path / "here")}
    found = re.search(r"best score (\S+) in trial (\d+)", result.stderr)
    assert found is not None
    best = max(scores.values())
    assert float(found[1]) == pytest.approx(best, abs=1e-3)
    assert scores[next(name for name in scores if name.startswith(f"{int(found[2]):04d}"))] == best


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["seed=0,1", "run_dir=mine"], "set hydra.sweep.dir=DIR instead"),
        (["seed=interval(0,1)"], "seed=interval(0,1) is not a list of values: set one, or use hydra/sweeper=optuna"),
        (["seed=0,1", "hydra.sweep.dir=taken"], "taken/seed-0 holds another run (env_runner.max_steps=1"),
        (["hydra/sweeper=optuna"], "nothing to search: set a range"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_a_line(overrides, expected, tmp_path):
    if "hydra.sweep.dir=taken" in overrides:
        first = sweep(*DRY, "seed=0", "seed=0,1", "env_runner.max_steps=1", "hydra.sweep.dir=taken", cwd=tmp_path)
        assert first.returncode == 0, first.stderr
    result = sweep(*DRY, "env_runner.max_steps=2", *overrides, cwd=tmp_path)
    assert result.returncode == 1
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


def test_the_dry_named_sweep_runs(tmp_path):
    result = sweep(*DRY, "+sweep=seeds", "env_runner.max_steps=1", "hydra.sweep.dir=here", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert states(tmp_path / "here") == {f"seed-{n}": "finished" for n in range(3)}


def test_directories_made_at_the_same_moment_are_different(tmp_path):
    with ThreadPoolExecutor(32) as pool:
        made = list(pool.map(create_new, [tmp_path / "a/run"] * 300))
    assert len(set(made)) == 300
    assert sum(path.is_dir() for path in (tmp_path / "a").iterdir()) == 300


@pytest.mark.parametrize(
    "text", ["", '{"step": 7}\nnoise\n', "[" * 100_000, '{"step": "a"}\n', '{"step": 7}\n{"step": 8, "tr']
)
def test_progress_is_known_as_far_as_the_files_say(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / record.FILE).write_text('{"state": 5}')
    assert _progress(tmp_path) == ("7" if "7" in text else "", "")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"jobs": 5}', '{"jobs": [{"dir": "../x"}]}', '{"jobs": [{}]}', "[" * 10**5]
)
def test_a_manifest_that_is_damaged_is_refused(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(ValueError, match=r"sweep\.json"):
        read_manifest(tmp_path / "sweep.json")


ALONG = """
# @package _global_
hydra:
  sweeper:
    params: {env_runner.max_steps: "3,5", env_runner.n_videos: "0"}
    along: {env_runner.max_steps=5: env_runner.n_episodes=2 env_runner.n_videos=1}
"""


def test_overrides_go_along_with_a_value_unless_they_are_set_otherwise(tmp_path):
    (tmp_path / "mine/sweep").mkdir(parents=True)
    (tmp_path / "mine/sweep/longer.yaml").write_text(ALONG)
    words = [word for word in DRY if not word.startswith("env_runner.n_")]
    result = sweep("--config-dir", "mine", "+sweep=longer", *words, "env_runner.n_workers=0", "hydra.sweep.dir=along",
                   cwd=tmp_path)  # fmt: skip
    assert result.returncode == 0, result.stderr
    added = {job["dir"]: [o for o in job["overrides"] if "n_episodes" in o or "n_videos" in o]
             for job in manifest(tmp_path / "along")}  # fmt: skip
    assert added == {
        "max_steps-3": ["env_runner.n_videos=0"],
        "max_steps-5": ["env_runner.n_videos=0", "env_runner.n_episodes=2"],
    }

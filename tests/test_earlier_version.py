"""What commit 7318b79 wrote still loads: a run, an evaluation, a sweep and a store (tests/data/v1)."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli import run_py
from tests.workspaces.conftest import metrics

V1 = Path(__file__).parent / "data/v1"
HERE = ("env_runner.n_workers=0", "env_runner.n_videos=0", "logger.mode=disabled", "n_threads=1", "device=cpu")


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    shutil.copytree(V1, tmp_path / "v1")
    return tmp_path / "v1"


def run(*typed: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    result = run_py(*typed, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result


def typed_of(run_dir: Path) -> list[str]:
    return json.loads((run_dir / "run.json").read_text())["overrides"]


def assert_close(ours: list[dict], theirs: list[dict]) -> None:
    """Another processor rounds otherwise, and intervals are computed in another way (docs/method.md)."""
    for one, other in zip(ours, theirs, strict=True):
        keys = {key for key in one.keys() | other.keys() if "_ci_" not in key}
        np.testing.assert_allclose([one[key] for key in keys], [other[key] for key in keys], rtol=2e-3, atol=2e-3)


def test_a_run_resumes_as_it_did(v1):
    overrides = [o for o in typed_of(v1 / "longer") if not o.startswith("run_dir=")]
    result = run(*overrides, "run_dir=run", cwd=v1)
    assert "resuming run at step 12" in result.stderr
    assert_close(metrics(v1 / "run"), metrics(v1 / "longer"))
    ours, theirs = (json.loads((v1 / name / "rollouts/18.json").read_text()) for name in ("run", "longer"))
    assert_close(ours, theirs)


def test_a_checkpoint_evaluates_to_the_same_rows(v1):
    for checkpoint in ("last.pt", "best-000012-0.076.pt"):
        run("workspace=evaluate", f"checkpoint=run/checkpoints/{checkpoint}", f"run_dir=again-{checkpoint}",
            "env_runner.max_steps=20", "env_runner.n_episodes=4", *HERE, cwd=v1)  # fmt: skip
        ours, theirs = (
            json.loads((v1 / name / "evaluation.json").read_text()) for name in (f"again-{checkpoint}", "evaluated")
        )
        assert_close(ours["episodes"], theirs["episodes"])
        for key in ("reset", "success", "seeds", "max_steps", "name"):
            assert ours["protocol"][key] == theirs["protocol"][key]
        assert ours["protocol"]["score"].partition(";")[0] == theirs["protocol"]["score"].partition(";")[0]


def test_a_sweep_is_found_finished_and_one_lost_job_runs_again(v1):
    lost = v1 / "sweep/horizon-10+num_inference_steps-2"
    before = json.loads((lost / "evaluation.json").read_text())["episodes"]
    shutil.rmtree(lost)
    command = [
        "-m",
        *(o for o in typed_of(v1 / "sweep/train+horizon-9") if not o.startswith(("horizon", "logger.group"))),
    ]
    run(*command, "horizon=9,10", "scheduler.num_inference_steps=2,3", "hydra.sweep.dir=sweep", cwd=v1)
    assert_close(json.loads((lost / "evaluation.json").read_text())["episodes"], before)
    assert json.loads((v1 / "sweep/train+horizon-9/run.json").read_text())["versions"]["gym-pusht"]


def test_its_directories_are_reported(v1):
    result = run("workspace=report", "runs=.", "run_dir=report", cwd=v1)
    assert re.search("runs that count: [67],", result.stderr), result.stderr
    html = (v1 / "report/report.html").read_text()
    assert "reward = min(1, coverage / 0.95)" in html
    assert "damaged" not in html.partition("<main>")[2].partition("<script>")[0]


def test_a_store_trains_is_inspected_and_grows(v1):
    run("+experiment=pusht_state_small", "dataset.path=collected.zarr", "dataset.val_ratio=0.5", "run_dir=trained",
        "workspace.num_steps=1", "denoiser.channels=[8,16]", "env_runner.n_episodes=1", "env_runner.max_steps=8",
        "env_runner.n_train_episodes=1", *HERE, cwd=v1)  # fmt: skip
    said = run("workspace=inspect", "dataset.path=collected.zarr", "task=pusht_state", cwd=v1).stdout
    assert "2 of 2 demonstrations start from the stored initial state" in said
    done = run("workspace=collect", "workspace.n_episodes=2", "workspace.path=collected.zarr", cwd=v1).stderr
    assert "2 planner" in done


def test_weights_are_what_they_were(v1):
    from workspaces import build, checkpoint
    from workspaces.evaluate import load_weights

    state = checkpoint.load(v1 / "run/checkpoints/last.pt")
    policy = build.policy(state["config"])
    load_weights(policy, state["ema"]["model"], Path("last.pt"))
    raw = torch.load(v1 / "run/checkpoints/last.pt", weights_only=True)["ema"]["model"]
    assert all(torch.equal(policy.state_dict()[name], raw[name]) for name in raw)

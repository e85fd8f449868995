"""Anybody's policy under our protocols: here, in another Python, and LeRobot's."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.cli import RUN, run_py
from workspaces.report import runs

QUICK = [
    "workspace=evaluate", "device=cpu", "n_threads=1", "task=pusht_state",
    "env_runner.n_episodes=2", "env_runner.max_steps=10",
    "env_runner.n_workers=0", "env_runner.n_videos=1", "logger.mode=disabled",
]  # fmt: skip

POLICIES = '''
import numpy as np


class Ours:
    """A policy of dp behind `act(obs)`, which draws its noise and fills its batch as the runner does."""

    def __init__(self, checkpoint):
        import torch
        from workspaces.evaluate import load_teacher

        self.torch, self.policy = torch, load_teacher(checkpoint, {}).eval()

    def reset(self, seed):
        self.generator = self.torch.Generator().manual_seed(seed)

    def act(self, obs):
        rows = {name: self.torch.from_numpy(x).repeat(16, *[1] * (x.ndim - 1)) for name, x in obs.items()}
        spare = [self.torch.Generator() for _ in range(15)]
        return self.policy.act(rows, [self.generator, *spare])[:1]


class Middle:
    """Moves to the middle, in chunks of five actions. It counts the rows it was asked for."""

    def __init__(self, x: float = 256.0):
        self.x = x

    def act(self, obs):
        assert obs["agent_pos"].dtype == np.float32
        return np.full((len(obs["agent_pos"]), 5, 2), [self.x, 256.0])


class Wrong(Middle):
    def act(self, obs):
        return super().act(obs)[0]


class Mute:
    pass
'''


@pytest.fixture
def lab(tmp_path: Path, monkeypatch) -> Path:
    """A folder with a package of policies on the path."""
    (tmp_path / "anylab.py").write_text(POLICIES)
    path = os.pathsep.join([str(tmp_path), str(RUN.parent)])
    monkeypatch.setenv("PYTHONPATH", path)
    return tmp_path


def evaluate(folder: Path, *overrides: str, run_dir: str = "out") -> dict:
    found = run_py(*QUICK, *overrides, f"run_dir={run_dir}", cwd=folder, timeout=120)
    assert found.returncode == 0, found.stderr
    return json.loads((folder / run_dir / "evaluation.json").read_text())


def test_a_policy_behind_act_scores_as_it_does_as_a_checkpoint(lab):
    checkpoint = "bundled/pusht_state_small"
    without_task = [override for override in QUICK if not override.startswith("task=")]
    found = run_py(*without_task, f"checkpoint={checkpoint}", "run_dir=own", cwd=lab)
    assert found.returncode == 0, found.stderr
    own = json.loads((lab / "own/evaluation.json").read_text())

    here = evaluate(lab, f"policy={{_target_: anylab.Ours, checkpoint: {checkpoint}}}", "n_action_steps=8")
    there = evaluate(
        lab,
        f"policy={{_target_: dp.rollouts.Elsewhere, target: 'anylab:Ours', python: {sys.executable}, "
        f"arguments: {{checkpoint: {checkpoint}}}}}",
        run_dir="elsewhere",
    )
    assert own["episodes"] == here["episodes"] == there["episodes"]
    assert own["protocol"] == here["protocol"]
    assert here["policy"]["_target_"] == "anylab.Ours"
    assert (lab / "out/media/0-100000.mp4").is_file()
    assert {run.config["name"] for run in runs.find(lab).finished} >= {"Ours"}


def test_chunks_may_have_any_length_and_the_report_shows_them(lab):
    whole = evaluate(lab, "policy=anylab.Middle")
    late = evaluate(lab, "policy=anylab.Middle", "n_action_steps=3", "env_runner.n_late=2", run_dir="late")
    assert [row["length"] for row in whole["episodes"]] == [10, 10]
    assert late["protocol"]["disturbances"] == "plans 2 steps late"
    moved = evaluate(lab, "policy={_target_: anylab.Middle, x: 100}", run_dir="moved")
    assert moved["settings"] == {"n_obs_steps": 2, "n_action_steps": None, "horizon": None, "seed": 0,
                                 "guidance": whole["settings"]["guidance"]}  # fmt: skip
    found = run_py("workspace=report", f"runs={lab}", "report.n_films=0", "logger.mode=disabled", cwd=lab)
    assert found.returncode == 0, found.stderr
    table = (lab / "report/tables/results.md").read_text()
    assert "| 100 " in table
    assert "resnet" not in table


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["policy=anylab.Wrong"], r"the policy's act(obs) returns actions of shape (5, 2), expected (1, T, 2)"),
        (["policy=anylab.Middle", "n_action_steps=9"], "T of at least n_action_steps=9"),
        (["policy=anylab.Middle", "env_runner.n_late=2"], "n_late=2, but a plan has only 0 actions left"),
        (["policy=anylab.Mute"], "policy=Mute has no method act(obs)"),
        (["policy=anylab.Nobody"], "policy: "),
        (["policy={_target_: anylab.Middle, y: 1}"], "unknown key policy.y: Middle has no such argument"),
        (["policy=anylab.Middle", "horizon=8"], "horizon says nothing about policy=anylab.Middle: leave it out"),
        (["policy=anylab.Middle", "checkpoint=x"], "checkpoint=x or policy=anylab.Middle? Set one of them"),
        (["policy={_target_: dp.rollouts.Elsewhere, target: 'a:B', python: /no}"], "policy.python=/no: No such"),
        (["policy={_target_: dp.rollouts.Elsewhere, target: 'anylab:None'}"], "has no attribute 'None'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(lab, typed, said):
    found = run_py(*QUICK, *typed, "run_dir=out", cwd=lab, timeout=60)
    assert found.returncode == 1
    assert said in found.stderr

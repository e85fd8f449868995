"""`workspace=export`: the folder of a trained policy, its card, and what is refused."""

import json

import pytest
import torch

from dp.policy import DiffusionPolicy
from tests.cli import RUN, run_py
from workspaces.evaluate import load_teacher


@pytest.fixture
def run_dir(run, tmp_path):
    result = run("run_dir=trained", "workspace.num_steps=4", "denoiser.channels=[64,96]")
    assert result.returncode == 0, result.stderr
    return tmp_path / "trained"


def test_a_trained_policy_becomes_a_folder_that_others_load(run_dir, tmp_path):
    typed = ["workspace=export", f"checkpoint={run_dir}", "format=safetensors", "to=given", "device=cpu", "n_threads=1"]
    done = run_py(*typed, "scheduler.num_inference_steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    policy, own = DiffusionPolicy.from_pretrained(tmp_path / "given"), load_teacher(str(run_dir), {})
    assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in policy.state_dict().items())
    assert policy.objective.num_inference_steps == 3
    config = json.loads((tmp_path / "given/config.json").read_text())["config"]
    assert config["dataset"]["path"] is None  # of this machine

    assert "It has not been tested." in (tmp_path / "given/README.md").read_text()  # with three steps
    assert run_py(*typed, cwd=tmp_path).returncode == 0
    card = (tmp_path / "given/README.md").read_text()
    evaluated = json.loads((run_dir / "rollouts/4.json").read_text())
    score = sum(row["max_reward"] for row in evaluated[:3]) / 3
    for said in (
        f"| {score:.3f} [", "seeds 100000–100002", "max_steps=20", config["dataset"]["sha256"], "torch 2.",
        "python run.py +experiment=pusht_state_small", "reward = min(1, coverage / 0.95)",
    ):  # fmt: skip
        assert said in card, said
    assert str(tmp_path) not in card

    refused = run_py(*typed[:2], "format=lerobot", "to=lerobot", cwd=tmp_path)
    assert refused.returncode == 1
    assert (
        "LeRobot's diffusion policy cannot express this one: encoder is StateEncoder. Expected encoder="
        in refused.stderr
    )
    assert not (tmp_path / "lerobot").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["checkpoint=x", "format=onx"], "format=onx, expected safetensors, lerobot, onnx or aoti"),
        (["checkpoint=x"], "format=???, expected safetensors"),
        (["format=onnx"], "set checkpoint=PATH"),
        (["format=onnx", "checkpoint=bundled/pusht_state_small", "horizon=8"], "horizon is fixed by the checkpoint"),
    ],
)  # fmt: skip
def test_a_mistake_is_named(tmp_path, typed, said):
    done = run_py("workspace=export", *typed, "device=cpu", cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_policy_of_another_project_is_exported_for_the_task_that_is_typed(tmp_path):
    theirs = f"checkpoint={RUN.parent / 'tests/data/reference/unet_lowdim.ckpt'}"
    done = run_py(
        "workspace=export", theirs, "task=pusht_keypoint", "format=safetensors", "to=ours", "device=cpu", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert DiffusionPolicy.from_pretrained(tmp_path / "ours").action_dim == 2

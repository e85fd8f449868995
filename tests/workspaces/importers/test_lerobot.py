"""Policies of LeRobot do here what they do there, and what is not known is refused by name.

`DP_LEROBOT_PYTHON=PATH`, a Python with lerobot==0.4.4, makes new policies with random weights and compares those, too.
"""

import json
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dp.policy import DiffusionPolicy
from tests import lerobot_policies
from tests.lerobot_policies import CASES, STEPS
from tests.workspaces.importers.conftest import DATA, given, given_for, loaded
from workspaces import build, checkpoint
from workspaces.evaluate import load_policy

NAMES = {
    "state": {"observation.state": "state", "observation.environment_state": "env"},
    "image": {"observation.image": "image", "observation.state": "agent_pos"},
    "cameras": {
        "observation.images.top": "top", "observation.images.wrist": "wrist", "observation.state": "state",
        "observation.environment_state": "env",
    },
    "shared": {"observation.images.a": "a", "observation.images.b": "b", "observation.state": "x"},
}  # fmt: skip
"""Inputs of a policy -> observations of `TASKS`."""


def plan(policy: DiffusionPolicy, case: str) -> Tensor:
    """The actions to execute for the inputs and the noise that `expected.json` was computed from."""
    obs = {NAMES[case][name]: torch.from_numpy(lerobot_policies.observed(name, s)) for name, s in CASES[case].items()}
    with torch.no_grad():
        sample = policy.denoise(lerobot_policies.noise(), policy.encode(obs), None, None)
    return policy.normalizer.unnormalize("action", sample)[:, policy.n_obs_steps - 1 :][:, : policy.n_action_steps]


def assert_equals_lerobot(folder: Path, case: str) -> None:
    policy, config = loaded(folder, given_for(case))
    assert config["scheduler"]["num_inference_steps"] == STEPS
    expected = torch.tensor(json.loads((DATA / "lerobot" / case / "expected.json").read_text()))
    if (folder / "expected.json").exists():
        expected = torch.tensor(json.loads((folder / "expected.json").read_text()))
    # In the normalised units in which networks compute, 1e-4 of which is 0.01 to 0.02 raw ones here.
    scale = policy.normalizer.get_buffer("action_scale")
    torch.testing.assert_close(plan(policy, case) * scale, expected * scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_it_samples_the_actions_that_lerobot_samples(lerobot, case):
    assert_equals_lerobot(lerobot(case), case)


@pytest.mark.skipif(
    "DP_LEROBOT_PYTHON" not in os.environ, reason="set DP_LEROBOT_PYTHON to a Python with lerobot==0.4.4"
)
def test_it_samples_what_the_installed_lerobot_samples(tmp_path):
    script = Path(lerobot_policies.__file__)
    command = [os.environ["DP_LEROBOT_PYTHON"], str(script), str(tmp_path), "--whole"]
    subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True)
    for case in CASES:
        assert_equals_lerobot(tmp_path / case, case)


def with_early_statistics(folder: Path) -> None:
    """Puts the statistics among the weights and removes the processors, as before LeRobot 0.4."""
    weights = load_file(folder / "model.safetensors")
    for name, tensor in load_file(next(folder.glob("policy_preprocessor_*.safetensors"))).items():
        feature, _, statistic = name.rpartition(".")
        kinds = ("normalize_targets", "unnormalize_outputs") if feature == "action" else ("normalize_inputs",)
        for kind in kinds:
            weights[f"{kind}.buffer_{feature.replace('.', '_')}.{statistic}"] = tensor.clone()
    for file in folder.glob("policy_*"):
        file.unlink()
    save_file(weights, folder / "model.safetensors")


def test_statistics_among_the_weights_mean_the_same(lerobot):
    folder = lerobot("image")
    with_early_statistics(folder)
    assert_equals_lerobot(folder, "image")


def test_it_is_found_in_the_directories_of_its_training(lerobot, tmp_path):
    folder = lerobot("state")
    inner = tmp_path / "outputs/train/lift/checkpoints/000200/pretrained_model"
    inner.parent.mkdir(parents=True)
    folder.rename(inner)
    (inner.parent.parent / "last").symlink_to("000200")
    for place in (inner, inner.parent, tmp_path / "outputs/train/lift", inner / "model.safetensors"):
        state = checkpoint.load(checkpoint.find(str(place)), given_for("state"))
        assert (state["step"], state["config"]["name"]) == (200, "lift")


def change(folder: Path, file: str, **fields: object) -> None:
    content = json.loads((folder / file).read_text())
    content.update(fields)
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"type": "act"}, "type='act', expected one of diffusion"),
        ({"attention": True}, "attention=True, a field that is not known here"),
        ({"horizon": "8"}, "horizon='8', expected a whole number"),
        ({"horizon": ...}, "lacks horizon"),
        ({"down_dims": [10**9]}, "down_dims[0]=1000000000"),
        ({"vision_backbone": "resnet50"}, "vision_backbone='resnet50', expected one of resnet18"),
        ({"noise_scheduler_type": "PNDM"}, "expected one of DDIM, DDPM"),
        ({"use_peft": True}, "merge the adapter"),
        ({"resize_shape": [10]}, "expected [height, width]"),
        ({"input_features": {"observation.state": {"type": "VISUAL", "shape": [2]}}}, "expected [3, height, width]"),
        ({"input_features": {"observation.arm": {"type": "STATE", "shape": [2]}}}, "expected observation.state"),
        ({"input_features": {}}, "expected observation.state among them"),
        ({"n_action_steps": 9}, "horizon=8 is too short"),
        ({"down_dims": [16, 64]}, "is of another architecture: denoiser."),
    ],
)
def test_a_field_that_is_wrong_or_unknown_is_named(lerobot, fields, reason):
    folder = lerobot("state")
    change(folder, "config.json", **fields)
    with pytest.raises(ValueError, match=r"checkpoint=.*model\.safetensors") as caught:
        loaded(folder, given_for("state"))
    assert reason in str(caught.value)


def test_fields_of_training_and_of_the_hub_do_not_matter(lerobot):
    folder = lerobot("state")
    change(folder, "config.json", optimizer_lr="high", device="cuda", use_amp=True, push_to_hub=..., license=3)
    assert_equals_lerobot(folder, "state")


@pytest.mark.parametrize(
    ("file", "fields", "reason"),
    [
        ("policy_preprocessor.json", {"steps": [{"registry_name": "tokenizer"}]}, "has the step tokenizer"),
        ("policy_preprocessor.json", {"steps": []}, "has 0 steps normalizer_processor, expected one"),
        ("policy_postprocessor.json", {"steps": ...}, "lacks steps"),
    ],
)
def test_a_processor_that_is_not_known_is_named(lerobot, file, fields, reason):
    folder = lerobot("state")
    change(folder, file, **fields)
    with pytest.raises(ValueError, match=reason):
        loaded(folder, given_for("state"))


def test_a_task_that_it_does_not_fit_is_told_what_to_type(lerobot):
    folder = lerobot("state")
    with pytest.raises(ValueError, match="and task=pusht_image does not have these") as caught:
        loaded(folder, given())
    _, typed, evaluating = str(caught.value).partition("Type task=own ")[2].split("'")
    assert "task=gymnasium" in evaluating
    assert list(loaded(folder, given("task=own", typed))[1]["task"]["shape_meta"]["obs"]) == [
        "state",
        "environment_state",
    ]


def test_a_constant_channel_stays_constant(lerobot):
    folder = lerobot("state")
    for kind in ("pre", "post"):
        file = next(folder.glob(f"policy_{kind}processor_*.safetensors"))
        stats = load_file(file)
        for feature in ("action", "observation.state"):
            stats[f"{feature}.max"] = stats[f"{feature}.min"].clone()
        save_file(stats, file)
    policy, _ = loaded(folder, given_for("state"))
    constant = stats["action.min"]
    torch.testing.assert_close(plan(policy, "state"), constant.expand(2, 4, 2), atol=1e-3, rtol=0)
    seen = policy.normalizer.normalize("state", stats["observation.state.min"])
    torch.testing.assert_close(seen, torch.full((2,), -1.0), atol=1e-4, rtol=0)


def test_an_evaluation_may_choose_how_it_samples(lerobot, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    typed = ["scheduler.num_inference_steps=4", "n_action_steps=2", "env_runner.protocol=paper-500", "task=pusht_image"]
    monkeypatch.setattr("workspaces.record.overrides", lambda: typed)
    loaded_policy = load_policy({**given(*typed), "checkpoint": str(lerobot("image"))}, "eager", torch.device("cpu"))
    config = loaded_policy.config
    assert (config["scheduler"]["num_inference_steps"], config["n_action_steps"]) == (4, 2)
    assert config["env_runner"]["n_episodes"] == 500
    assert loaded_policy.about["origin"] == "LeRobot"
    assert build.task(config).name == "pusht_image"
    assert "observation.image as image, observation.state as agent_pos" in caplog.text


def test_the_range_of_actions_is_said_to_be_narrower_here(lerobot, caplog):
    folder = lerobot("state")
    change(folder, "config.json", clip_sample=False)
    loaded(folder, given_for("state"))
    assert "clip_sample=False" in caplog.text

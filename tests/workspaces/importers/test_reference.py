"""Policies of the paper's code do here what ours do with the same weights."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch

from dp.modalities import Normalizer
from dp.policy import DiffusionPolicy
from tests import reference_checkpoints as reference
from tests.dp.denoisers.test_transformer import INPUTS, REFERENCE, filled
from tests.workspaces.importers.conftest import DATA, given, loaded
from workspaces import build, checkpoint
from workspaces.beginning import begin_from
from workspaces.evaluate import load_policy
from workspaces.train_state import TrainState

FILE = DATA / "reference/unet_lowdim.ckpt"
"""A UNet on PushT's keypoints, pickled with dill."""

IMAGE, LOW_DIM = "task=pusht_image", "task=pusht_keypoint"
TRANSFORMER = ["denoiser=transformer", "denoiser.width=32", "denoiser.n_layers=2"]
UNET = ["denoiser.channels=[16,32]", "denoiser.step_embed_dim=16"]
OURS = {
    "unet_image": [IMAGE, "encoder=resnet18_paper", *UNET],
    "unet_lowdim": [LOW_DIM, "encoder=state", *UNET],
    "transformer_image": [IMAGE, "encoder=resnet18_paper", *TRANSFORMER],
    "transformer_lowdim": [LOW_DIM, "encoder=state", *TRANSFORMER],
}
"""The same policies in our configuration."""


@cache
def ours(case: str) -> DiffusionPolicy:
    torch.manual_seed(0)
    times = ["horizon=8", "n_action_steps=4", "scheduler=ddpm", "scheduler.num_inference_steps=10"]
    policy = build.policy(build.resolve(given(*OURS[case], *times))).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # also where a network begins with zeros
        for name, buffer in policy.normalizer.named_buffers():
            buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("scale") else -0.5))
    return policy


def written(path: Path, case: str, policy: DiffusionPolicy, **changed: object) -> Path:
    """`policy` as a checkpoint of the paper's code, with some fields of its configuration changed."""
    maps = {name: buffer.flatten() for name, buffer in policy.normalizer.named_buffers()}
    weights = {**reference.entries(policy), **reference.linear("action", maps["action_scale"], maps["action_offset"])}
    if case.endswith("image"):
        weights |= reference.linear("image", torch.tensor([2.0]), torch.tensor([-1.0]))
        weights |= reference.linear("agent_pos", maps["agent_pos_scale"], maps["agent_pos_offset"])
    else:
        both = [torch.cat([maps[f"keypoint_{kind}"], maps[f"agent_pos_{kind}"]]) for kind in ("scale", "offset")]
        weights |= reference.linear("obs", *both)
    config = {**copy.deepcopy(reference.CONFIGS[case]), **changed}
    reference.write(path, {key: value for key, value in config.items() if value is not ...}, weights)
    return path


@pytest.mark.parametrize("case", OURS)
def test_it_plans_what_a_policy_of_ours_with_these_weights_plans(tmp_path, case):
    policy = ours(case)
    imported, config = loaded(written(tmp_path / "epoch=0500.ckpt", case, policy), given(OURS[case][0]))
    assert config["name"] == "epoch_0500"
    assert config["seed"] == 42
    obs = {"agent_pos": 500 * torch.rand(2, 2, 2)}
    if case.endswith("image"):
        obs["image"] = torch.randint(256, (2, 2, 96, 96, 3), dtype=torch.uint8)
    else:
        obs["keypoint"] = 500 * torch.rand(2, 2, 9, 2)
    plans = [p.act(obs, torch.Generator().manual_seed(0)) for p in (policy, imported)]
    torch.testing.assert_close(plans[0], plans[1], atol=1e-5, rtol=0)


def test_its_transformer_computes_what_the_papers_does(tmp_path):
    """Outputs of the paper's own network with the same weights."""
    network = filled()
    sizes = {"n_layer": 2, "n_head": 2, "n_emb": 8, "p_drop_attn": 0.0}
    config = reference.CONFIGS["transformer_lowdim"]
    config = {**config, "model": {**config["model"], **sizes}, "horizon": 4, "n_action_steps": 3, "obs_dim": 3}
    weights = {f"model.{name}": value for name, value in network.state_dict().items()}
    for name, size in (("obs", 3), ("action", 2)):
        weights |= reference.linear(name, torch.ones(size), torch.zeros(size))
    reference.write(tmp_path / "x.ckpt", config, weights)
    imported, _ = loaded(
        tmp_path / "x.ckpt", given("task=own", "task.shape_meta={obs: {s: {shape: [3]}}, action: {shape: [2]}}")
    )
    expected = torch.tensor(REFERENCE["causal"]).reshape(2, 4, 2)
    torch.testing.assert_close(imported.denoiser(*INPUTS), expected, atol=1e-5, rtol=0)


def test_a_file_that_dill_wrote_is_evaluated_and_fine_tuned(monkeypatch):
    typed = [LOW_DIM, "scheduler.num_inference_steps=4"]
    monkeypatch.setattr("workspaces.record.overrides", lambda: typed)
    evaluated = load_policy({**given(*typed), "checkpoint": str(FILE)}, "eager", torch.device("cpu"))
    assert (evaluated.about["step"], evaluated.about["origin"]) == (1234, "real-stanford/diffusion_policy")
    assert evaluated.config["scheduler"]["num_inference_steps"] == 4
    network = ["denoiser.channels=[8,16]", "denoiser.step_embed_dim=8", "denoiser.kernel_size=3"]
    config = build.resolve(given(LOW_DIM, "encoder=state", *network, f"init_from={FILE}"))
    state = TrainState.fresh(config, Normalizer(evaluated.policy.normalizer.specs), torch.device("cpu"))
    begin_from(state, config, Path("nowhere"))
    for name, value in evaluated.policy.state_dict().items():
        assert torch.equal(state.policy.state_dict()[name], value)


def test_a_directory_of_its_training_has_a_latest_checkpoint(tmp_path):
    path = written(tmp_path / "checkpoints/latest.ckpt", "unet_lowdim", ours("unet_lowdim"))
    assert checkpoint.find(str(tmp_path)) == path


def test_a_task_that_fits_is_offered(tmp_path):
    with pytest.raises(
        ValueError, match=r"takes obs \[20\], action \[2\], and task=pusht_image .* Type task=pusht_keypoint"
    ):
        loaded(FILE, given())


@pytest.mark.parametrize(
    ("case", "changed", "reason"),
    [
        ("unet_lowdim", {"_target_": "diffusion_policy.policy.ibc.IBC"}, "its policy is diffusion_policy.policy.ibc"),
        ("unet_lowdim", {"oa_step_convention": ...}, "oa_step_convention=False, expected True"),
        ("unet_lowdim", {"pred_action_steps_only": True}, "pred_action_steps_only=True, expected False"),
        ("unet_lowdim", {"eta": 1.0}, "its policy has eta=1.0, a field that is not known here"),
        ("unet_lowdim", {"n_obs_steps": "two"}, "n_obs_steps='two', expected a whole number"),
        ("unet_lowdim", {"n_obs_steps": "${nowhere}"}, "${nowhere}"),
        ("unet_lowdim", {"noise_scheduler": {**reference.SCHEDULER, "thresholding": True}}, ".thresholding"),
        ("unet_lowdim", {"noise_scheduler": {**reference.SCHEDULER, "_target_": "os.system"}}, "_target_='os.system'"),
        ("unet_lowdim", {"obs_dim": 19}, "takes obs [19]"),
        ("unet_image", {"crop_shape": [81, 84]}, "crops [81, 84] from images of [96, 96]"),
        ("unet_image", {"eval_fixed_crop": False}, "eval_fixed_crop=False, expected True"),
        ("unet_image", {"obs_encoder_group_norm": False}, "is of another architecture: encoder."),
        ("transformer_lowdim", {"model": {**reference.TRANSFORMER, "time_as_cond": False}}, "time_as_cond=False"),
    ],
)  # fmt: skip
def test_a_field_that_is_wrong_or_unknown_is_named(tmp_path, case, changed, reason):
    path = written(tmp_path / "x.ckpt", case, ours(case), **changed)
    with pytest.raises(ValueError, match=r"checkpoint=.*x\.ckpt") as caught:
        loaded(path, given(OURS[case][0]))
    assert reason in str(caught.value)


def test_actions_that_leave_the_range_of_the_data_are_named(tmp_path, caplog):
    scheduler = {**reference.CONFIGS["unet_lowdim"]["noise_scheduler"], "clip_sample": False}
    path = written(tmp_path / "one.ckpt", "unet_lowdim", ours("unet_lowdim"), noise_scheduler=scheduler)
    checkpoint.load(path, given(LOW_DIM))
    assert "clip_sample=False, clip_sample_range=1.0: in the paper's code its actions may leave" in caplog.text

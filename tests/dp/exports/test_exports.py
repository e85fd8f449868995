"""Exported policies compute what the policy does."""

import copy
import os

import pytest
import torch

from dp.exports import aoti, onnx
from dp.exports.actor import Actor
from dp.policy import DiffusionPolicy
from dp.pretrained import assemble
from tests.dp.test_pretrained import CONFIG


def actor(**changes: dict) -> Actor:
    config = copy.deepcopy(CONFIG)
    config["scheduler"]["num_inference_steps"] = 2
    for place, settings in changes.items():
        config[place] |= settings
    torch.manual_seed(0)
    policy = DiffusionPolicy(**assemble(config)).eval().requires_grad_(False)
    policy.normalizer.get_buffer("action_scale").fill_(0.01)  # raw actions of hundreds
    return Actor(policy).eval()


def assert_equal(compiled, of: Actor) -> None:
    for seed in (1, 2):
        inputs = of.example(seed=seed)
        torch.testing.assert_close(compiled(*inputs), of.reference(*inputs), rtol=0, atol=1e-4 / 0.01)


def test_the_actor_acts_as_the_policy_does_from_the_same_noise():
    one = actor()
    noise, camera, pose = one.example(seed=5)
    drawn = torch.Generator().manual_seed(5)
    assert torch.equal(noise, torch.randn(noise.shape, generator=drawn))
    action = one.policy.act({"camera": camera, "pose": pose}, torch.Generator().manual_seed(5))
    torch.testing.assert_close(one.reference(noise, camera, pose), action, rtol=0, atol=1e-3)


ON_DEMAND = pytest.mark.skipif("DP_TEST_EXPORTS" not in os.environ, reason="DP_TEST_EXPORTS=1: it takes a minute")


@pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param({}, id="ddim"),
        pytest.param(
            {"_target_": "diffusers.DPMSolverMultistepScheduler", "num_inference_steps": 3},
            id="dpm_solver",
            marks=ON_DEMAND,
        ),
    ],
)
def test_onnx_computes_the_same(tmp_path, scheduler):
    pytest.importorskip("onnxscript", reason="pip install -e '.[onnx]'")
    pytest.importorskip("onnxruntime")
    one = actor(scheduler=scheduler)
    onnx.write(one, tmp_path / onnx.FILE)
    assert_equal(onnx.load(tmp_path / onnx.FILE), one)
    before = one.policy.objective.scheduler.timesteps.clone()
    one.reference(*one.example())  # the scheduler is as it was
    assert torch.equal(one.policy.objective.scheduler.timesteps, before)


@ON_DEMAND
def test_the_compiled_program_computes_the_same(tmp_path):
    one = actor()
    aoti.write(one, tmp_path / aoti.FILE)
    assert_equal(aoti.load(tmp_path / aoti.FILE), one)


def test_a_sampler_that_draws_more_noise_is_refused():
    with pytest.raises(ValueError, match="DDPMScheduler draws noise at every step"):
        actor(scheduler={"_target_": "diffusers.DDPMScheduler"})

"""LeRobot's format. With DP_LEROBOT_PYTHON=PATH, the Python of an environment with lerobot 0.4, it is loaded there."""

import copy
import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from dp.exports import lerobot
from dp.policy import DiffusionPolicy
from dp.pretrained import assemble
from tests.cli import run_py
from tests.dp.test_pretrained import CONFIG

ROOT = Path(__file__).parents[3]
PYTHON = os.environ.get("DP_LEROBOT_PYTHON")

LEROBOT: dict = {
    **CONFIG,
    "name": "pusht_image",
    "task": {
        "_target_": "dp.tasks.pusht.PushT", "name": "pusht_image", "protocols": None,
        "env": {"_target_": "dp.tasks.pusht.PushTEnv", "_partial_": True},
        "shape_meta": {
            "obs": {"image": {"type": "rgb", "shape": [3, 96, 96]}, "agent_pos": {"type": "low_dim", "shape": [2]}},
            "action": {"shape": [2]},
        },
    },
    "encoder": {"_target_": "dp.encoders.ResNetEncoder", "final_relu": True},
    "scheduler": {
        "_target_": "diffusers.DDIMScheduler", "num_train_timesteps": 100, "num_inference_steps": 4,
        "beta_schedule": "squaredcos_cap_v2", "clip_sample": True,
    },
}  # fmt: skip

LOAD = """
import sys
import numpy as np, torch
from mylab.lerobot_policy import LeRobotPolicy
folder, file = sys.argv[1:]
given = np.load(file)
one = LeRobotPolicy(folder)
generate = one.policy.diffusion.generate_actions
one.policy.diffusion.generate_actions = lambda batch: generate(batch, noise=torch.from_numpy(given["noise"]))
np.save(file + ".actions.npy", one.act({"image": given["image"], "agent_pos": given["agent_pos"]}).numpy())
"""


def policy(**changes: dict) -> DiffusionPolicy:
    config = copy.deepcopy(LEROBOT)
    for place, settings in changes.items():
        whole = not isinstance(settings, dict) or "_target_" in settings
        config[place] = settings if whole else config[place] | settings
    torch.manual_seed(0)
    made = DiffusionPolicy(**assemble(config)).eval().requires_grad_(False)
    for name, (low, high) in {"agent_pos": (20.0, 500.0), "action": (10.0, 511.0)}.items():
        made.normalizer.get_buffer(f"{name}_scale").fill_(2 / (high - low))
        made.normalizer.get_buffer(f"{name}_offset").copy_(torch.tensor([-1 - 2 * low / (high - low)] * 2))
    return made


def test_it_has_the_files_and_the_order_of_lerobot(tmp_path):
    lerobot.write(policy(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "policy_postprocessor.json",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors", "policy_preprocessor.json",
        "policy_preprocessor_step_3_normalizer_processor.safetensors",
    ]  # fmt: skip
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["down_dims"], config["crop_shape"], config["noise_scheduler_type"]) == ([16, 32], [84, 84], "DDIM")
    ours, theirs = policy().denoiser.state_dict(), lerobot.weights_of(policy())
    own, other = (
        ours["mid_modules.0.cond_encoder.1.weight"],
        theirs["diffusion.unet.mid_modules.0.cond_encoder.1.weight"],
    )
    embed = 16
    assert torch.equal(other[:, embed : embed + 2], own[:, embed + 64 : embed + 66])  # the state comes first
    assert torch.equal(other[:, embed + 66 + 2 : embed + 2 * 66], own[:, embed + 66 : embed + 66 + 64])
    assert lerobot.statistics_of(policy())["action.max"].tolist() == pytest.approx([511, 511], abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder": {"_target_": "dp.encoders.CNNEncoder"}}, "encoder is CNNEncoder.*encoder=resnet18_paper"),
        ({"encoder": {"final_relu": False}}, "encoder.final_relu is false"),
        ({"encoder": {"norm": "batch"}}, "encoder.norm is batch"),
        ({"denoiser": {"film": "residual"}}, "the denoiser has film=residual"),
        (
            {"scheduler": {"_target_": "diffusers.DPMSolverMultistepScheduler", "num_inference_steps": 4}},
            "DPMSolver.*scheduler=ddpm or ddim",
        ),
        ({"scheduler": {"clip_sample": False}}, "scheduler.clip_sample is false"),
        ({"scheduler": {"set_alpha_to_one": False}}, "set_alpha_to_one is False. Expected .*=True"),
        ({"horizon": 10}, "horizon=10. Expected a multiple of 4"),
    ],
)  # fmt: skip
def test_what_lerobot_cannot_express_is_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=said):
        lerobot.check(policy(**changes))


@pytest.fixture
def lab(tmp_path: Path, monkeypatch) -> Path:
    """The tutorial's package, on the path."""
    text = (ROOT / "docs/tutorial/export.md").read_text()
    (content,) = re.findall(r"^```python\n# mylab/lerobot_policy\.py\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab/lerobot_policy.py").write_text(content)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.mark.skipif(PYTHON is None, reason="DP_LEROBOT_PYTHON=PATH: a Python with lerobot 0.4")
def test_lerobot_loads_it_and_acts_the_same_and_is_evaluated_here(lab):
    ours = policy()
    lerobot.write(ours, lab / "exported")
    noise = torch.randn(3, ours.horizon, 2, generator=torch.Generator().manual_seed(1))
    obs = {
        "image": torch.randint(256, (3, 2, 96, 96, 3), dtype=torch.uint8),
        "agent_pos": torch.rand(3, 2, 2) * 480 + 20,
    }
    np.savez(lab / "given.npz", noise=noise, **{name: x.numpy() for name, x in obs.items()})
    assert PYTHON is not None
    code = [PYTHON, "-c", LOAD, str(lab / "exported"), str(lab / "given.npz")]
    done = subprocess.run(code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    theirs = torch.from_numpy(np.load(lab / "given.npz.actions.npy"))
    sampled = ours.objective.sample(ours.denoiser, noise, ours.encode(obs), None).clamp(-1, 1)
    own = ours.normalizer.unnormalize("action", sampled)[:, 1:5]
    scale = ours.normalizer.get_buffer("action_scale")
    assert ((theirs - own) * scale).abs().max() < 1e-4

    target = f"target: 'mylab.lerobot_policy:LeRobotPolicy', python: {PYTHON}, arguments: {{path: {lab}/exported}}"
    quick = ["env_runner.n_episodes=2", "env_runner.max_steps=8", "env_runner.n_workers=0", "logger.mode=disabled"]
    scores = []
    for name in ("one", "again"):
        typed = ["workspace=evaluate", "task=pusht_image", f"policy={{_target_: dp.rollouts.Elsewhere, {target}}}"]
        found = run_py(*typed, *quick, "device=cpu", f"run_dir={lab}/{name}", cwd=lab, timeout=300)
        assert found.returncode == 0, found.stderr
        scores.append(json.loads((lab / name / "evaluation.json").read_text())["episodes"])
    assert scores[0] == scores[1]

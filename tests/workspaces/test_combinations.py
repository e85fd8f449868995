"""Every objective with every denoiser, encoder and precision: two steps, the second of them resumed, and samples."""

import copy

import pytest
import torch
from hydra import compose, initialize_config_dir

from dp.engines import EagerStep
from dp.policy import DiffusionPolicy
from tests.cli import RUN, run_py
from tests.workspaces.conftest import assert_same_run, metrics
from workspaces import build

CONFIGS = RUN.parent / "configs"

OBJECTIVES = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))

TINY = {
    "unet1d_small": ["denoiser.channels=[16,32]", "denoiser.step_embed_dim=16"],
    "transformer_small": ["denoiser.width=32", "denoiser.n_layers=2"],
    "dit_small": ["denoiser.width=32", "denoiser.n_layers=2"],
    "mlp_small": ["denoiser.width=32", "denoiser.n_layers=2"],
}


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return build.resolve(build.settings(compose("config", list(overrides))))


def batch_for(policy: DiffusionPolicy, config: dict) -> dict:
    obs, action = build.shape_meta(config)
    n, generator = 6, torch.Generator().manual_seed(0)
    sizes = {name: (n, config["n_obs_steps"], *spec.shape) for name, spec in obs.items()}
    return {
        "obs": {name: torch.rand(size, generator=generator) for name, size in sizes.items()},
        "action": torch.rand((n, config["horizon"], *action.shape), generator=generator) * 2 - 1,
    }


def test_a_consistency_policy_is_distilled_and_resumes(run, tmp_path):
    taught = ("objective=consistency", "objective.distil=true", "scheduler.num_inference_steps=1")
    alone = run(*taught, "run_dir=student")
    assert "objective.distil=true needs a teacher: init_from=PATH" in alone.stderr
    for objective in ("diffusion", "flow"):
        result = run(f"objective={objective}", f"run_dir={objective}", "workspace.num_steps=2")
        assert result.returncode == 0, result.stderr
    refused = run(*taught, "init_from=flow", "run_dir=student")
    assert "init_from=flow cannot teach: its objective Flow has no method `denoised`" in refused.stderr
    for place in ("student", "again"):
        result = run(*taught, "init_from=diffusion", f"run_dir={place}", "workspace.num_steps=6")
        assert result.returncode == 0, result.stderr
        assert "WARNING" not in result.stderr
    more = [run_py(f"run_dir={place}", "workspace.num_steps=9", cwd=tmp_path) for place in ("student", "again")]
    assert [result.returncode for result in more] == [0, 0], more[0].stderr
    assert_same_run(tmp_path / "student", tmp_path / "again")
    state = torch.load(tmp_path / "student/checkpoints/last.pt", weights_only=True)
    assert not [name for name in state["policy"] if "teacher" in name]
    # Distillation is not consistency training: the teacher decides.
    result = run(*taught[:1], taught[2], "init_from=diffusion", "run_dir=untaught", "workspace.num_steps=6")
    assert result.returncode == 0, result.stderr
    assert metrics(tmp_path / "untaught")[0] != metrics(tmp_path / "student")[0]


def test_an_objective_without_a_choice_says_how_often_it_evaluates():
    for objective, evaluations in (("regression", 1), ("mip", 2), ("flow", 10)):
        config = composed("+experiment=pusht_state_small", f"objective={objective}")
        assert config["scheduler"]["num_inference_steps"] == evaluations


EXPERIMENTS = {"pusht_state_small": list(TINY), "pusht_image_small": ["unet1d_small", "dit_small"]}


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_two_steps_resume_to_the_bit_and_sample(objective, experiment):
    for number, denoiser in enumerate(EXPERIMENTS[experiment]):
        bf16 = (number + OBJECTIVES.index(objective)) % 2 > 0
        chosen = [f"objective={objective}", f"denoiser={denoiser}", *TINY[denoiser], "scheduler.num_inference_steps=2"]
        config = composed(f"+experiment={experiment}", *chosen, "noise_draws=2", "device=cpu")
        torch.manual_seed(0)
        policy = build.policy(config)
        batch, optimizer = batch_for(policy, config), torch.optim.AdamW(policy.parameters(), 1e-3)
        step = EagerStep(policy, optimizer, lambda given: given, 1.0, bf16)
        first = step([batch])
        assert first.isfinite().all(), denoiser
        saved = copy.deepcopy((policy.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
        second = step([batch])
        policy.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        torch.set_rng_state(saved[2])
        assert torch.equal(step([batch]), second), denoiser
        with torch.no_grad():
            cond = policy.condition(batch["obs"])
        actions = policy.sample(cond, [torch.Generator().manual_seed(i) for i in range(6)])
        assert actions.isfinite().all(), denoiser
        assert actions.shape == batch["action"].shape

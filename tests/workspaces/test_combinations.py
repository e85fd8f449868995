"""Every objective with every denoiser, encoder and precision: two steps, the second of them resumed, and samples."""

import copy

import pytest
import torch
from hydra import compose, initialize_config_dir

from dp.engines import EagerStep
from dp.policy import DiffusionPolicy
from tests.cli import RUN
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

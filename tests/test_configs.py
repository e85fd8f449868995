"""Every configuration that ships composes, is consistent, and builds."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from workspaces import build, settings, trust

CONFIGS = Path(__file__).parent.parent / "configs"
EXPERIMENTS = sorted(p.stem for p in (CONFIGS / "experiment").glob("*.yaml"))


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return build.resolve(build.settings(compose("config", list(overrides))))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_and_its_policy_learns_and_acts(experiment):
    config = composed(f"+experiment={experiment}")
    settings.check(config)
    trust.check_targets(trust.plain(config, "config"))
    assert config["name"] == experiment
    if "small" not in experiment:  # the shapes, not the cost
        config["denoiser"]["channels"] = [32, 64, 128]
    config["scheduler"]["num_inference_steps"] = 2
    policy = build.policy(config)

    shapes = {name: entry["shape"] for name, entry in config["task"]["shape_meta"]["obs"].items()}
    to, horizon, ta = config["n_obs_steps"], config["horizon"], config["n_action_steps"]
    (action_dim,) = config["task"]["shape_meta"]["action"]["shape"]
    batch = {
        "obs": {name: torch.rand(2, to, *shape) for name, shape in shapes.items()},
        "action": torch.rand(2, horizon, action_dim),
    }
    optimizer = build.optimizer(config, policy.parameters())
    lr_schedule = build.lr_schedule(config, optimizer)
    policy.loss(batch).backward()
    assert all(p.grad is not None for p in policy.parameters())
    optimizer.step()
    lr_schedule.step()
    build.ema(config, policy).update(policy)

    raw = {
        name: torch.randint(256, (2, to, *shape[1:], 3), dtype=torch.uint8) if len(shape) == 3 else batch["obs"][name]
        for name, shape in shapes.items()
    }
    assert policy.eval().act(raw).shape == (2, ta, action_dim)


def test_the_papers_image_run_has_the_papers_numbers():
    config = composed("+experiment=pusht_image_paper")
    assert (config["horizon"], config["n_obs_steps"], config["n_action_steps"]) == (16, 2, 8)
    assert config["denoiser"]["channels"] == [512, 1024, 2048]
    assert config["optimizer"]["betas"] == [0.95, 0.999]
    assert (config["optimizer"]["lr"], config["optimizer"]["weight_decay"]) == (1e-4, 1e-6)
    assert (config["workspace"]["num_steps"], config["workspace"]["batch_size"]) == (512_400, 64)
    assert (config["scheduler"]["num_inference_steps"], config["noise_draws"]) == (100, 1)
    assert config["encoder"]["final_relu"] is True
    assert composed("+experiment=pusht_image")["encoder"]["final_relu"] is True
    with torch.device("meta"):
        n_parameters = sum(p.numel() for p in build.policy(config).parameters())
    assert n_parameters == pytest.approx(263e6, rel=0.01)


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm_solver"])
@pytest.mark.parametrize("denoiser", ["unet1d", "unet1d_small", "unet1d_additive"])
def test_every_choice_goes_with_every_other(scheduler, denoiser):
    config = composed(f"scheduler={scheduler}", f"denoiser={denoiser}", "encoder=cnn", "horizon=10")
    settings.check(config)
    config["denoiser"]["channels"] = [32, 32]
    config["scheduler"]["num_inference_steps"] = 2
    policy = build.policy(config).eval()
    assert policy.sample(torch.zeros(1, 2, policy.encoder.out_dim)).shape == (1, 10, 2)


def test_the_keypoint_task_flows_through_every_dimension():
    config = composed("task=pusht_keypoint", "encoder=state", "denoiser=unet1d_small", "n_obs_steps=3")
    policy = build.policy(config)
    assert policy.encoder.out_dim == 20
    obs = {"keypoint": torch.rand(2, 3, 9, 2), "agent_pos": torch.rand(2, 3, 2)}
    assert policy.condition(obs).shape == (2, 3, 20)


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "sweep").glob("*.yaml")))
def test_a_named_sweep_has_values_of_settings_that_exist(name):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        sweeper = compose("config", [f"+sweep={name}"], return_hydra_config=True).hydra.sweeper
    along = dict(sweeper.along or {})
    for key, values in sweeper.params.items():
        for value in values.split(","):
            settings.check(composed(f"{key}={value}", *along.pop(f"{key}={value}", "").split()))
    assert not along  # of a value that is not swept


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "launcher").glob("*.yaml")))
def test_a_launcher_takes_its_settings(name):
    pytest.importorskip(f"hydra_plugins.hydra_{name.partition('_')[0]}_launcher")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("config", [f"+launcher={name}"], return_hydra_config=True)
    assert name.partition("_")[0] in config.hydra.launcher._target_

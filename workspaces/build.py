"""From configuration to objects. The only place that calls `instantiate`, always with plain containers."""

import inspect
import os
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dp.data import Demonstrations
from dp.ema import EMA
from dp.modalities import Normalizer, parse_shape_meta
from dp.policy import DiffusionPolicy
from dp.processes import N_CORES
from dp.rollouts.runner import EnvRunner
from dp.tasks import Task
from workspaces.base import Config, Workspace
from workspaces.errors import flatten
from workspaces.logger import Logger, check_mode
from workspaces.trust import check_component

CUSTOM = "custom"
"""The name of numbers that no protocol of the task has."""

NUMBERS = (
    "seed",
    "noise_draws",
    "optimizer.lr",
    "optimizer.weight_decay",
    "ema.power",
    "lr_schedule.num_warmup_steps",
    "dataset.val_ratio",
    "dataset.split_seed",
    "scheduler.num_train_timesteps",
    "scheduler.num_inference_steps",
    "env_runner.n_episodes",
    "env_runner.start_seed",
    "env_runner.n_train_episodes",
    "env_runner.max_steps",
    "env_runner.n_envs",
    "env_runner.n_videos",
    "workspace.max_grad_norm",
)
"""What a typing error can turn into a word."""


def workspace(composed: DictConfig) -> Workspace:
    """The verb that `workspace=` names, ready to run."""
    verb = cast(type[Workspace], get_class(composed.workspace._target_))
    config = settings(composed)
    if in_sweep():
        os.chdir(HydraConfig.get().runtime.cwd)  # a worker of a cluster may begin elsewhere
        config["run_dir"] = HydraConfig.get().runtime.output_dir
    if verb.resolves:
        resolve(config)
        check(config)
    taken = inspect.signature(verb).parameters  # an experiment's settings for training mean nothing to other verbs
    return verb(config=config, **{key: value for key, value in config["workspace"].items() if key in taken})


def in_sweep() -> bool:
    """Whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def settings(composed: DictConfig) -> Config:
    """A composed configuration in plain containers."""
    return cast(Config, OmegaConf.to_container(composed, resolve=True))


def resolve(config: Config) -> Config:
    """Puts numbers in place of what follows from other settings: `n_action_steps: auto`, and the task's protocol.

    Returns `config`. Raises ValueError for a protocol that the task does not have.
    """
    if config["n_action_steps"] == "auto" and isinstance(config["horizon"], int):
        config["n_action_steps"] = auto_action_steps(config)
    runner = config["env_runner"]
    facts = task({**config, "task": {**config["task"], "env": None}})
    try:
        protocol = facts.protocol(None if runner["protocol"] == CUSTOM else runner["protocol"])
    except ValueError as error:
        raise ValueError(f"env_runner.{error}") from None
    for key in ("n_episodes", "start_seed", "max_steps"):
        runner[key] = getattr(protocol, key) if runner[key] is None else runner[key]
    runner["protocol"] = facts.name_of(runner["n_episodes"], runner["start_seed"], runner["max_steps"]) or CUSTOM
    return config


def auto_action_steps(config: Config) -> int:
    """8, or as many as the horizon holds."""
    return max(1, min(8, config["horizon"] - config["n_obs_steps"] + 1))


def check(config: Config) -> None:
    """Raises ValueError for settings that contradict each other, before anything is read or written."""
    flat = flatten(config)
    for key in NUMBERS:
        if key in flat and (isinstance(flat[key], bool) or not isinstance(flat[key], (int, float))):
            raise ValueError(f"{key}={flat[key]}, expected a number")
    horizon, n_obs, n_action = config["horizon"], config["n_obs_steps"], config["n_action_steps"]
    for name in ("horizon", "n_obs_steps", "n_action_steps"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise ValueError(f"{name}={config[name]}, expected a whole number of at least 1")
    if horizon < n_obs - 1 + n_action:
        raise ValueError(
            f"horizon={horizon} is too short: n_obs_steps - 1 + n_action_steps = {n_obs - 1 + n_action}. "
            f"Use horizon={n_obs - 1 + n_action} or more, or n_action_steps={max(1, horizon - n_obs + 1)}"
        )
    scheduler = config["scheduler"]
    if not 1 <= scheduler["num_inference_steps"] <= scheduler["num_train_timesteps"]:
        raise ValueError(
            f"scheduler.num_inference_steps={scheduler['num_inference_steps']}, expected 1 to "
            f"scheduler.num_train_timesteps={scheduler['num_train_timesteps']}"
        )
    if scheduler["prediction_type"] not in ("epsilon", "sample", "v_prediction"):
        raise ValueError(
            f"scheduler.prediction_type={scheduler['prediction_type']}, expected epsilon, sample or v_prediction"
        )
    check_mode(config["logger"]["mode"])
    check_component(config["name"], "name")


def task(config: Config) -> Task:
    """The facts of the task, with what makes its environment (`Task.env`)."""
    return _make(config["task"])


def demonstrations(config: Config) -> Demonstrations:
    obs, action = parse_shape_meta(config["task"]["shape_meta"])
    return _make({**config["dataset"], "_partial_": True})(obs=obs, action=action)


def policy(config: Config, normalizer: Normalizer | None = None) -> DiffusionPolicy:
    """The policy, its weights fresh. Without a normalizer: one to load a checkpoint's statistics into."""
    obs, action = parse_shape_meta(config["task"]["shape_meta"])
    (action_dim,) = action.shape
    encoder = _make({**config["encoder"], "_partial_": True})(specs=obs)  # as they are: Hydra would take them apart
    denoiser = _make(config["denoiser"], action_dim=action_dim, cond_dim=config["n_obs_steps"] * encoder.out_dim)
    scheduler = dict(config["scheduler"])
    num_inference_steps = scheduler.pop("num_inference_steps")
    return DiffusionPolicy(
        encoder=encoder,
        denoiser=denoiser,
        scheduler=_make(scheduler),
        normalizer=normalizer or Normalizer({**obs, "action": action}),
        horizon=config["horizon"],
        n_obs_steps=config["n_obs_steps"],
        n_action_steps=config["n_action_steps"],
        action_dim=action_dim,
        num_inference_steps=num_inference_steps,
        noise_draws=config["noise_draws"],
    )


def collector(config: Config) -> Any:
    """A `dp.tasks.pusht.demonstration.Collector`, or, for collector=checkpoint, `dp.tasks.pusht.rollouts.rollouts`."""
    return _make(config["collector"])


def env_runner(config: Config) -> EnvRunner | None:
    """None for a task without a simulator."""
    make_env = task(config).make_env
    if make_env is None:
        return None
    settings = dict(config["env_runner"])
    if settings["n_workers"] == "auto":
        settings["n_workers"] = N_CORES
    return _make(settings, make_env=make_env, n_obs_steps=config["n_obs_steps"])


def optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return _make({**config["optimizer"], "_partial_": True})(parameters)


def lr_schedule(config: Config, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    steps = config["workspace"]["num_steps"]
    return _make({**config["lr_schedule"], "_partial_": True})(optimizer, num_training_steps=steps)


def ema(config: Config, policy: DiffusionPolicy) -> EMA[DiffusionPolicy]:
    return _make({**config["ema"], "_partial_": True})(policy)


def logger(config: Config, workspace: Workspace, job_type: str, run_id: str | None = None) -> Logger:
    made = {"run_dir": workspace.run_dir, "config": config, "job_type": job_type, "run_id": run_id}
    return _make({**config["logger"], "_partial_": True})(**made)


def _make(settings: Mapping[str, Any], **parts: Any) -> Any:
    return instantiate({**settings, **parts}, _convert_="all")

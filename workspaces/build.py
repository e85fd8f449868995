"""From configuration to objects. The only place that calls `instantiate`, always with plain containers."""

import inspect
import os
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dp.data import Demonstrations
from dp.data.batches import BatchOrder, Loader, ResidentLoader, StreamedLoader, fits
from dp.data.windows import WindowDataset
from dp.ema import EMA
from dp.modalities import Normalizer, parse_shape_meta
from dp.policy import DiffusionPolicy
from dp.processes import N_CORES
from dp.tasks import Task
from workspaces import record
from workspaces.base import Config, Workspace
from workspaces.logger import Logger
from workspaces.settings import check, check_typed


def workspace(composed: DictConfig) -> Workspace:
    """The verb that `workspace=` names, ready to run."""
    config = settings(composed)
    if in_sweep():
        os.chdir(HydraConfig.get().runtime.cwd)  # a worker of a cluster may begin elsewhere
        config["run_dir"] = HydraConfig.get().runtime.output_dir
    check(config)
    check_typed(config, record.overrides())
    verb = get_class(config["workspace"]["_target_"])
    taken = inspect.signature(verb).parameters  # an experiment's settings for training mean nothing to other verbs
    return verb(config=config, **{key: value for key, value in config["workspace"].items() if key in taken})


def in_sweep() -> bool:
    """Whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def settings(composed: DictConfig) -> Config:
    """A composed configuration in plain containers, with `n_action_steps: auto` as a number."""
    config = cast(Config, OmegaConf.to_container(composed, resolve=True))
    if config["n_action_steps"] == "auto" and isinstance(config["horizon"], int):
        config["n_action_steps"] = auto_action_steps(config)
    return config


def auto_action_steps(config: Config) -> int:
    """8, or as many as the horizon holds."""
    return max(1, min(8, config["horizon"] - config["n_obs_steps"] + 1))


def task(config: Config) -> Task:
    """The facts of the task, with what makes its environment (`Task.env`)."""
    return _make(config["task"])


def demonstrations(config: Config) -> Demonstrations:
    obs, _ = parse_shape_meta(config["task"]["shape_meta"])
    return _make(config["dataset"], obs_shapes={name: spec.shape for name, spec in obs.items()})


def windows(config: Config, data: Demonstrations) -> tuple[WindowDataset, WindowDataset]:
    """The windows to train on, and those to validate on: none where no episode is held out."""
    steps = (config["horizon"], config["n_obs_steps"], config["n_action_steps"])
    return data.windows(data.train_episodes, *steps), data.windows(data.split.val, *steps)


def policy(config: Config, normalizer: Normalizer | None = None) -> DiffusionPolicy:
    """The policy, its weights fresh. Without a normalizer: one to load a checkpoint's statistics into."""
    obs, action = parse_shape_meta(config["task"]["shape_meta"])
    (action_dim,) = action.shape
    encoder = _make(config["encoder"], shapes={name: spec.shape for name, spec in obs.items()})
    denoiser = _make(config["denoiser"], action_dim=action_dim, cond_dim=config["n_obs_steps"] * encoder.out_dim)
    scheduler = dict(config["scheduler"])
    num_inference_steps = scheduler.pop("num_inference_steps")
    low_dim = {name: spec.shape for name, spec in obs.items() if spec.type == "low_dim"}
    return DiffusionPolicy(
        encoder=encoder,
        denoiser=denoiser,
        scheduler=_make(scheduler),
        normalizer=normalizer or Normalizer({**low_dim, "action": action.shape}),
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


def env_runner(config: Config) -> Any:
    """An `EnvRunner` in the environment of the task; None for a task that has none."""
    settings = dict(config["env_runner"])
    if settings["n_workers"] == "auto":
        settings["n_workers"] = N_CORES
    facts = task(config)
    if facts.env is None:
        return None
    make_env = partial(facts.env, obs_names=facts.obs_names)
    return _make(settings, make_env=make_env, n_obs_steps=config["n_obs_steps"])


def loader(config: Config, windows: WindowDataset, step: int, device: torch.device) -> Loader:
    """The batches of training from optimizer step `step` on."""
    settings = config["workspace"]
    start = step * settings["grad_accumulation"]
    order = BatchOrder(len(windows), settings["batch_size"], config["seed"], start)
    if settings["loader"] == "resident" or (settings["loader"] == "auto" and fits(windows, device)):
        return ResidentLoader(windows, order, device)
    return StreamedLoader(windows, order, device, settings["n_loader_workers"])


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

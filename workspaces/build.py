"""From configuration to objects. The only place that calls `instantiate`, always with plain containers."""

import inspect
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
from dp.rollouts.runner import EnvRunner
from dp.rollouts.trial import try_out
from dp.tasks import Task
from dp.types import Objective
from workspaces import record, trust
from workspaces import settings as checks
from workspaces.base import Config, Workspace
from workspaces.logger import Logger

CUSTOM = "custom"
"""The name of numbers that no protocol of the task has."""


def workspace(composed: DictConfig) -> Workspace:
    """The verb that `workspace=` names, ready to run."""
    verb = cast(type[Workspace], get_class(composed.workspace._target_))
    config = settings(composed)
    if in_sweep():
        os.chdir(HydraConfig.get().runtime.cwd)  # a worker of a cluster may begin elsewhere
        config["run_dir"] = HydraConfig.get().runtime.output_dir
    checks.check_typed(config, record.overrides())
    if verb.resolves:
        check(resolve(config))
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
    """Raises ValueError for settings that contradict each other, and for a scheduler that the objective cannot train,
    before anything is read or written."""
    checks.check(config)
    if config["task"]["shape_meta"]:
        objective(config)


def task(config: Config) -> Task:
    """The facts of the task, with what makes its environment (`Task.env`)."""
    return _make(config["task"])


def task_of(config: Config, trusted: Collection[str] = ()) -> Task:
    """The task that a run directory's `config` names, for its facts and pictures.

    A class that is neither ours nor in one of the packages `trusted` is not imported: then a `Task` that knows no more
    than its name and observations, without an environment.
    """
    named = config["task"]
    try:
        trust.check_targets(config, trusted, places=("task", "task.env"))
    except ValueError:
        return Task(str(named.get("name", "task")), named["shape_meta"], protocols=named.get("protocols"))
    return task(config)


def demonstrations(config: Config) -> Demonstrations:
    obs, action = parse_shape_meta(config["task"]["shape_meta"])
    return _make({**config["dataset"], "_partial_": True})(obs=obs, action=action)


def windows(config: Config, data: Demonstrations) -> tuple[WindowDataset, WindowDataset]:
    """The windows to train on, and those to validate on: none where no episode is held out."""
    steps = (config["horizon"], config["n_obs_steps"], config["n_action_steps"])
    return data.windows(data.train_episodes, *steps), data.windows(data.split.val, *steps)


def policy(config: Config, normalizer: Normalizer | None = None) -> DiffusionPolicy:
    """The policy, its weights fresh. Without a normalizer: one to load a checkpoint's statistics into."""
    obs, action = parse_shape_meta(config["task"]["shape_meta"])
    (action_dim,) = action.shape
    n_obs_steps, horizon = config["n_obs_steps"], config["horizon"]
    with _typed(config, "encoder"):
        encoder = _make(config["encoder"], specs=obs, shapes={name: spec.shape for name, spec in obs.items()})
    trained_by = objective(config)
    with _typed(config, "denoiser"):
        denoiser = _make(
            config["denoiser"],
            action_dim=action_dim,
            horizon=horizon,
            n_obs_steps=n_obs_steps,
            obs_dim=encoder.out_dim,
            cond_dim=n_obs_steps * encoder.out_dim,
            n_times=trained_by.n_times,
        )
    return DiffusionPolicy(
        encoder=encoder,
        denoiser=denoiser,
        objective=trained_by,
        normalizer=normalizer or Normalizer({**obs, "action": action}),
        horizon=horizon,
        n_obs_steps=n_obs_steps,
        n_action_steps=config["n_action_steps"],
        action_dim=action_dim,
        noise_draws=config["noise_draws"],
    )


def objective(config: Config) -> Objective:
    """What the policy is trained for. Raises ValueError for a scheduler or a number of steps that it cannot use."""
    _, action = parse_shape_meta(config["task"]["shape_meta"])
    (action_dim,) = action.shape
    scheduler = dict(config["scheduler"])
    num_inference_steps = scheduler.pop("num_inference_steps")
    with _typed(config, "objective", "scheduler"):
        return _make(
            config["objective"],
            scheduler=_make(scheduler),
            num_inference_steps=num_inference_steps,
            action_dim=action_dim,
            horizon=config["horizon"],
        )


def collector(config: Config) -> Any:
    """A `dp.tasks.demonstration.Collector`, or, for collector=checkpoint, `dp.rollouts.demonstrator.rollouts`."""
    return _make(config["collector"])


def env_runner(config: Config) -> EnvRunner | None:
    """None for a task without a simulator. Raises ValueError for an environment that does not do what it must."""
    its_task = task(config)
    make_env = its_task.make_env
    if make_env is None:
        return None
    obs, action = parse_shape_meta(config["task"]["shape_meta"])
    try_out(make_env, obs, action, config["env_runner"]["start_seed"])
    settings = dict(config["env_runner"])
    if settings["n_workers"] == "auto":
        settings["n_workers"] = N_CORES
    parts = {"make_env": make_env, "obs_names": list(obs), "bounds": its_task.bounds}
    return _make(settings, n_obs_steps=config["n_obs_steps"], **parts)


def loader(config: Config, windows: WindowDataset, step: int, device: torch.device) -> Loader:
    """The batches of training from optimizer step `step` on."""
    settings = config["workspace"]
    start = step * settings["grad_accumulation"]
    order = BatchOrder(len(windows), settings["batch_size"], config["seed"], start)
    if settings["loader"] == "resident" or (settings["loader"] == "auto" and fits(windows, device)):
        return ResidentLoader(windows, order, device)
    return StreamedLoader(windows, order, device, settings["n_loader_workers"])


def optimizer(config: Config, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return _make(config["optimizer"], params=parameters)


def lr_schedule(config: Config, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return _make(config["lr_schedule"], optimizer=optimizer, num_training_steps=config["workspace"]["num_steps"])


def ema(config: Config, policy: DiffusionPolicy) -> EMA[DiffusionPolicy]:
    return _make(config["ema"], model=policy)


def logger(config: Config, workspace: Workspace, job_type: str, run_id: str | None = None) -> Logger:
    return _make(config["logger"], run_dir=workspace.run_dir, config=config, job_type=job_type, run_id=run_id)


def _make(settings: Mapping[str, Any], **offered: Any) -> Any:
    """What `settings` describe. Of the parts `offered`, it gets those that its signature names."""
    make = instantiate({**settings, "_partial_": True}, _convert_="all")
    named = inspect.signature(make.func).parameters
    parts = {name: part for name, part in offered.items() if name in named}
    return partial(make, **parts) if settings.get("_partial_") else make(**parts)


@contextmanager
def _typed(config: Config, *groups: str) -> Iterator[None]:
    """Puts the group before the argument that a ValueError begins with: "skip=no" becomes "denoiser.skip=no"."""
    try:
        yield
    except ValueError as error:
        argument = str(error).partition("=")[0]
        for group in groups:
            if argument in config[group]:
                raise ValueError(f"{group}.{error}") from error
        raise

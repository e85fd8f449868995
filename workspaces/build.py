"""From configuration to objects. The only place that calls `instantiate`, always with plain containers."""

import importlib
import inspect
import logging
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dp.data import Demonstrations
from dp.data.batches import BatchOrder, Loader, ResidentLoader, StreamedLoader, fits
from dp.data.windows import WindowDataset
from dp.distributed import LOCAL_WORLD, WORLD
from dp.ema import EMA
from dp.modalities import Normalizer, Spec, parse_shape_meta
from dp.policy import DiffusionPolicy
from dp.processes import N_CORES
from dp.rollouts.adapter import PolicyAdapter
from dp.rollouts.runner import EnvRunner
from dp.rollouts.trial import try_out
from dp.tasks import Task
from dp.tasks.demonstration import Recording
from dp.types import Guidance, Objective
from workspaces import command, record, resume, trust
from workspaces import settings as checks
from workspaces.arguments import MISSING, check_arguments, check_value, shown
from workspaces.base import Config, Workspace
from workspaces.config import CONFIGS
from workspaces.errors import Interrupted, cause_of, explain, is_explained, is_ours
from workspaces.logger import Logger
from workspaces.memory import MEMORY, MemoryLimit

log = logging.getLogger(__name__)

TAKEN_APART = {"scheduler": ("num_inference_steps",), "optimizer": ("encoder_lr", "norm_decay")}
"""Settings that the class of their group does not take, but the objective or `train_state.parameter_groups` does."""

CUSTOM = "custom"
"""Name of a protocol that the task does not define."""


def workspace(composed: DictConfig) -> Workspace:
    """The verb that `workspace=` names, ready to run."""
    _check_names()
    config, typed, own = settings(composed), record.overrides(), None
    _shrink(config, typed)
    _check_values(config)
    if in_sweep():
        os.chdir(HydraConfig.get().runtime.cwd)  # a worker of a cluster may begin elsewhere
        config["run_dir"] = HydraConfig.get().runtime.output_dir
    verb = _verb(config["workspace"])
    if WORLD > 1 and not verb.trains:
        raise ValueError(f"only a training can be shared by {WORLD} processes: type this command without torchrun")
    if not in_sweep():
        config["run_dir"] = config["run_dir"] or resume.hydra_run_dir()
        own = resume.own_config(config, typed) if verb.trains else None
        if own is not None:
            config = own
            _check_values(config)
    if verb.resolves:
        for group in checks.BUILT:
            _settings(config, group)
        check(resolve(config))
        check_scheduler(config, typed)
        _check_groups(config)
        trust.check_own(config)
    taken = inspect.signature(verb).parameters  # an experiment's settings for training mean nothing to other verbs
    arguments = {key: value for key, value in config["workspace"].items() if key in taken}
    check_arguments("workspace", verb, arguments, given=["config"])
    made = verb(config=config, **arguments)
    if own is not None:
        made.overrides = resume.recorded(made.run_dir, typed)
    return made


def _check_names() -> None:
    """Raises ValueError for a file of the user's own that is never read, because a configuration of ours has its
    name."""
    ours = [file.relative_to(CONFIGS) for file in sorted(CONFIGS.rglob("*.yaml"))]
    folders = [Path(folder) for folder in command.config_dirs()]
    for folder in (folder for folder in folders if folder.resolve() != CONFIGS.resolve()):
        for name in ours:
            if (folder / name).is_file():
                raise ValueError(
                    f"{folder / name} is not read: dp has a configuration {name}, too. Choose another name"
                )


def _shrink(config: Config, typed: Collection[str]) -> None:
    """Sets those values of `debug.shrink` that a group has and the user did not type."""
    debug = config.get("debug")
    shrink = debug.get("shrink") or {} if isinstance(debug, dict) else {}
    for key, value in shrink.items():
        group, _, name = key.partition(".")
        if name in config[group] and not any(override.lstrip("+").startswith(f"{key}=") for override in typed):
            config[group][name] = value


def _check_values(config: Config) -> None:
    checks.check_values({**config, "n_action_steps": 1} if config["n_action_steps"] == "auto" else config)


def _check_groups(config: Config) -> None:
    """Raises ValueError for arguments that the classes do not take, before any slow work. It imports the classes, so
    call it only for settings that the user composed."""
    for group in checks.BUILT:
        settings = _settings(config, group)
        with _named(config, group):
            _check(group, settings, inspect.signature(_target(settings["_target_"])).parameters)


def _verb(settings: Any) -> type[Workspace]:
    target = settings.get("_target_") if isinstance(settings, dict) else settings
    package, _, name = str(target).rpartition(".")
    try:
        verb = getattr(importlib.import_module(package), name)
    except (ModuleNotFoundError, AttributeError, ValueError):
        verb = None
    if not (inspect.isclass(verb) and issubclass(verb, Workspace)):
        raise ValueError(
            f"workspace={shown(target)}, expected a verb: train, evaluate, inspect, convert, collect, critic, improve, "
            "report, compare or export"
        )
    return verb


def in_sweep() -> bool:
    """Whether this run is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def settings(composed: DictConfig) -> Config:
    """A composed configuration in plain containers. Raises ValueError for an interpolation `${...}` to nowhere."""
    try:
        return cast(Config, OmegaConf.to_container(composed, resolve=True))
    except OmegaConfBaseException as error:
        raise ValueError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def resolve(config: Config) -> Config:
    """Replaces settings that follow from others by numbers: `n_action_steps: auto`, the task's protocol, and the number
    of evaluations of an objective that leaves no choice.

    Returns `config`. Raises ValueError for a protocol that the task does not have.
    """
    if config["n_action_steps"] == "auto" and isinstance(config["horizon"], int):
        config["n_action_steps"] = auto_action_steps(config)
    kind = config["objective"]["_target_"]
    if isinstance(kind, str) and kind.startswith("dp.objectives."):
        only = getattr(_target(kind), "num_inference_steps", None)  # of the class: regression and mip have one
        config["scheduler"]["num_inference_steps"] = only or config["scheduler"]["num_inference_steps"]
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
    """The value of `n_action_steps: auto`: 8, or as many as the horizon holds."""
    return max(1, min(8, config["horizon"] - config["n_obs_steps"] + 1))


def check(config: Config) -> None:
    """Raises ValueError for settings that contradict each other, and for a scheduler that the objective cannot train,
    before anything is read or written."""
    checks.check(config)
    if config["task"]["shape_meta"] != MISSING:
        _check_batch(config)
        if hasattr(objective(config), "teach_with") and config.get("init_from") is None:
            raise ValueError(
                "this objective needs a teacher: init_from=PATH, a policy of objective=diffusion with the same networks"
            )


def _check_batch(config: Config) -> None:
    """Raises ValueError for a batch that cannot fit in memory. A network needs at least 100 numbers per action."""
    obs, _ = shape_meta(config)
    batch_size = config["workspace"].get("batch_size")
    if not isinstance(batch_size, int):  # of a verb that does not train
        return
    # float32 numbers of a batch: the observations, and the activations for every noisy action.
    observed = config["n_obs_steps"] * sum(math.prod(spec.shape) for spec in obs.values())
    n_bytes = 4 * batch_size * (observed + 100 * config["noise_draws"] * config["horizon"])
    if n_bytes > MEMORY:
        raise ValueError(
            f"workspace.batch_size={batch_size} with noise_draws={config['noise_draws']} and "
            f"horizon={config['horizon']} takes {n_bytes / 1e9:.0f} GB or more, but this machine has "
            f"{MEMORY / 1e9:.0f} GB: set a smaller workspace.batch_size"
        )


def task(config: Config) -> Task:
    """The facts of the task, with what makes its environment (`Task.env`)."""
    return _make(config, "task")


def shape_meta(config: Config) -> tuple[dict[str, Spec], Spec]:
    """(observations by name, action) of the task. Raises ValueError, naming an entry."""
    with _named(config, "task"):
        return parse_shape_meta(config["task"]["shape_meta"])


def task_of(config: Config, trusted: Collection[str] = ()) -> Task:
    """The task named by a run directory's `config`, for its facts and pictures.

    A class that is neither ours nor in one of the packages `trusted` is not imported. A `Task` with only its name and
    observations, without an environment, stands for it.
    """
    named = config["task"]
    try:
        trust.check_targets(config, trusted, places=("task", "task.env"))
    except ValueError:
        return Task(str(named.get("name", "task")), named["shape_meta"], protocols=named.get("protocols"))
    return task(config)


def demonstrations(config: Config) -> Demonstrations:
    log.info("%s: reading the data", config["name"])
    obs, action = shape_meta(config)
    return _make(config, "dataset", obs=obs, action=action, task=task(config))


def windows(config: Config, data: Demonstrations) -> tuple[WindowDataset, WindowDataset]:
    """The windows to train on, and those to validate on: none if no episode is held out."""
    steps = (config["horizon"], config["n_obs_steps"], config["n_action_steps"])
    train = data.windows(data.train_episodes, *steps)
    try:
        return train, data.windows(data.split.val, *steps)
    except ValueError as error:
        log.warning("Nothing is validated: %s, or hold more episodes out (dataset.val_ratio).", error)
        return train, data.windows(data.split.val[:0], *steps)


def policy(config: Config, normalizer: Normalizer | None = None) -> DiffusionPolicy:
    """The policy, its weights fresh. Without a normalizer: one to load a checkpoint's statistics into.

    Raises ValueError for arguments that a part of it refuses, and for networks that do not fit in memory.
    """
    obs, action = shape_meta(config)
    (action_dim,) = action.shape
    trained_by = objective(config)
    with MemoryLimit(MEMORY // 2):  # the weights and their average
        encoder, denoiser = _networks(config, obs, action_dim, trained_by.n_times)
    return DiffusionPolicy(
        encoder=encoder,
        denoiser=denoiser,
        objective=trained_by,
        normalizer=normalizer or Normalizer({**obs, "action": action}),
        horizon=config["horizon"],
        n_obs_steps=config["n_obs_steps"],
        n_action_steps=config["n_action_steps"],
        action_dim=action_dim,
        noise_draws=config["noise_draws"],
    )


def other_policy(config: Config) -> PolicyAdapter:
    """Anybody's policy, which `policy` describes: a class and its arguments.

    Raises ValueError if it cannot be made, or cannot act.
    """
    _, action = shape_meta(config)
    return PolicyAdapter(_make(config, "policy"), action.shape[0], config["n_action_steps"])


def _networks(config: Config, obs: Mapping[str, Spec], action_dim: int, n_times: int) -> tuple[Any, Any]:
    """Builds encoder and denoiser."""
    encoder = _make(config, "encoder", specs=obs, shapes={name: spec.shape for name, spec in obs.items()})
    denoiser = _make(
        config,
        "denoiser",
        action_dim=action_dim,
        horizon=config["horizon"],
        n_obs_steps=config["n_obs_steps"],
        obs_dim=encoder.out_dim,
        cond_dim=config["n_obs_steps"] * encoder.out_dim,
        n_times=n_times,
    )
    return encoder, denoiser


def network_shapes(config: Config) -> dict[str, torch.Tensor]:
    """Shapes and types of the weights of the policy's networks, as tensors without memory ("meta").

    Empty for networks from another package, whose constructors may compute.
    """
    if not all(config[place]["_target_"].startswith("dp.") for place in ("encoder", "denoiser")):
        return {}
    obs, action = shape_meta(config)
    n_times = objective(config).n_times
    with torch.device("meta"):
        networks = _networks(config, obs, action.shape[0], n_times)
    named = zip(("encoder", "denoiser"), networks, strict=True)
    return {f"{place}.{name}": tensor for place, part in named for name, tensor in part.state_dict().items()}


def objective(config: Config) -> Objective:
    """The training objective. Raises ValueError for a scheduler or a number of steps that it cannot use."""
    _, action = shape_meta(config)
    (action_dim,) = action.shape
    with _named(config, "scheduler"):
        return _make(
            config,
            "objective",
            scheduler=_make(config, "scheduler"),
            num_inference_steps=config["scheduler"]["num_inference_steps"],
            action_dim=action_dim,
            horizon=config["horizon"],
        )


def check_scheduler(config: Config, typed: Iterable[str]) -> None:
    """Raises ValueError for a scheduler that was typed, but that the objective does not use.

    In a sweep, whose other jobs may use it, that is a warning.
    """
    kind = config["objective"]["_target_"]
    if not kind.startswith("dp.objectives.") or "scheduler" in inspect.signature(_target(kind)).parameters:
        return
    for override in typed:
        if checks.group(override) == "scheduler" and checks.key(override) != "scheduler.num_inference_steps":
            said = (
                f"{override}: {kind.rpartition('.')[2]} uses no scheduler. Leave it out; "
                "scheduler.num_inference_steps alone sets the number of evaluations"
            )
            if not in_sweep():
                raise ValueError(said)
            log.warning(said)


def collector(config: Config, its_task: Task, n_workers: int, record: Callable[[int], Recording] | None) -> Any:
    """A `dp.tasks.demonstration.Collector`, or what runs a policy: `dp.rollouts.demonstrator.rollouts` and
    `dp.rollouts.takeover.Takeover`. These may want the task's expert, what makes its environment, and the others."""
    parts = {"expert": its_task.expert, "make_env": its_task.make_env, "n_workers": n_workers, "record": record}
    return _make(config, "collector", **parts)


def env_runner(config: Config, guidance: Guidance | None = None) -> EnvRunner | None:
    """The runner of rollouts; None for a task without a simulator. Raises ValueError for a faulty environment.

    guidance: instead of the configured one.
    """
    its_task = task(config)
    make_env = its_task.make_env
    if make_env is None:
        return None
    if config.get("policy") is None:  # of another one only its chunks tell how long they are
        _check_late(config)
    obs, action = shape_meta(config)
    parts = {"make_env": make_env, "obs_names": list(obs), "bounds": its_task.bounds}
    parts["guidance"] = guidance or _guidance(config, its_task)
    runner = _make(config, "env_runner", n_obs_steps=config["n_obs_steps"], **parts)
    with _named(config, "task"):
        try_out(make_env, obs, action, config["env_runner"]["start_seed"], films=runner.n_videos > 0)
    return runner


def _check_late(config: Config) -> None:
    """Raises ValueError if plans end before the first action of the next one."""
    n_late, n_action = config["env_runner"].get("n_late", 0), config["n_action_steps"]
    n_left = config["horizon"] - config["n_obs_steps"] + 1 - n_action
    if n_late > n_left:
        raise ValueError(
            f"env_runner.n_late={n_late}, but of a plan only {n_left} actions are left after n_action_steps={n_action}"
            ": set a smaller env_runner.n_late or n_action_steps, or train with a larger horizon"
        )


def _guidance(config: Config, its_task: Task) -> Guidance:
    return _make(
        config,
        "guidance",
        n_action_steps=config["n_action_steps"],
        n_late=config["env_runner"].get("n_late", 0),  # a runner of the user's own may have none
        simulator=its_task.simulator_critic,
    )


def check_collection(config: Config, its_task: Task) -> None:
    """Raises ValueError for a collector or a guidance that this task cannot have."""
    collector(config, its_task, 0, None)
    _guidance({**config, "n_action_steps": 1}, its_task)


def loader(config: Config, windows: WindowDataset, step: int, device: torch.device) -> Loader:
    """The batches of training from optimizer step `step` on."""
    settings = config["workspace"]
    start = step * settings["grad_accumulation"]
    order = BatchOrder(len(windows), settings["batch_size"], config["seed"], start)
    if settings["loader"] == "resident" or (settings["loader"] == "auto" and fits(windows, device)):
        return ResidentLoader(windows, order, device)
    return StreamedLoader(windows, order, device, settings["n_loader_workers"])


def optimizer(config: Config, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimizer of parameters, or of groups of them (`train_state.parameter_groups`)."""
    return _make(config, "optimizer", params=parameters)


def lr_schedule(config: Config, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return _make(config, "lr_schedule", optimizer=optimizer, num_training_steps=config["workspace"]["num_steps"])


def ema(config: Config, policy: DiffusionPolicy) -> EMA[DiffusionPolicy]:
    return _make(config, "ema", model=policy)


def logger(config: Config, workspace: Workspace, job_type: str, run_id: str | None = None) -> Logger:
    return _make(config, "logger", run_dir=workspace.run_dir, config=config, job_type=job_type, run_id=run_id)


def _settings(config: Config, group: str) -> dict[str, Any]:
    """The settings of `group` as its class takes them. Raises ValueError if they name no class."""
    settings = config[group]
    if not isinstance(settings, dict) or not isinstance(settings.get("_target_"), str):
        raise ValueError(f"{group}={shown(settings)}, expected a choice ({group}=NAME) or a class and its arguments")
    if group in TAKEN_APART:
        return {name: value for name, value in settings.items() if name not in TAKEN_APART[group]}
    if group == "env_runner" and settings.get("n_workers") == "auto":
        return {**settings, "n_workers": -(-N_CORES // LOCAL_WORLD)}
    return settings


def _make(config: Config, group: str, /, **offered: Any) -> Any:
    """Builds the object that the settings of `group` describe, from those parts `offered` that its signature names.

    Raises ValueError, naming what was typed, for any error, because the settings are the user's.
    """
    settings = _settings(config, group)
    with _named(config, group):
        make = _target(settings["_target_"])
        named = inspect.signature(make).parameters
        parts = {name: part for name, part in offered.items() if name in named}
        _check(group, settings, parts)
        made = instantiate({**settings, "_partial_": True}, _convert_="all")
        return partial(made, **parts) if settings.get("_partial_") else made(**parts)


@cache
def _target(name: str) -> Callable[..., Any]:
    """The class or function that a `_target_` names. Kept, because a start asks dozens of times."""
    return instantiate({"_target_": name, "_partial_": True}).func


def _check(key: str, settings: Mapping[str, Any], given: Collection[str]) -> None:
    """Compares `settings`, and nested ones, with the signatures of their classes."""
    below = {name: value for name, value in settings.items() if isinstance(value, dict) and "_target_" in value}
    own = {name: value for name, value in settings.items() if name not in below}
    check_value(f"{key}._target_", settings["_target_"], str)
    check_value(f"{key}._partial_", settings.get("_partial_", False), bool)
    make = _target(settings["_target_"])
    later = inspect.signature(make).parameters if settings.get("_partial_") else ()
    check_arguments(key, make, own, [*given, *below, *later])
    for name, value in below.items():
        _check(f"{key}.{name}", value, ())


@contextmanager
def _named(config: Config, group: str) -> Iterator[None]:
    """Turns any error into a ValueError that names those settings of the `group` that caused it."""
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        if isinstance(cause, OSError | Interrupted):
            raise
        if is_explained(cause):  # of a class that cannot be found
            raise ValueError(f"{group}: {explain(cause)}") from error
        reason = _reason(config, group, cause)
        if isinstance(cause, ValueError) and reason == str(cause):
            raise  # a class of errors may say more
        raise ValueError(reason) from error


def _reason(config: Config, group: str, error: Exception) -> str:
    """ "skip=no, ..." becomes "denoiser.skip=no, ...". A message of another library follows what was typed."""
    text = str(error)
    if isinstance(error, ValueError) and is_ours(error):
        argument = re.match(r"\w+", text)
        known = (
            argument is not None and argument[0] in config[group] and text[argument.end() :].startswith(("=", ":", "."))
        )
        return f"{group}.{text}" if known else text
    typed = [override for override in record.overrides() if checks.group(override) == group] or [group]
    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
    said = text.strip().partition("\n")[0]
    return f"{' '.join(typed)} cannot be used. {config[group]['_target_']} says: {kind}{said}"

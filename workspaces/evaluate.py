"""Rolls a checkpoint, or anybody's policy, out under a named protocol. Needs no data set."""

import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from dp import engines
from dp.files import write_json
from dp.guidance import Unguided
from dp.kernels.calibration import AVAILABLE
from dp.policy import DiffusionPolicy
from dp.rollouts.baselines import DoNothing, Replay
from dp.rollouts.runner import EnvRunner, RolloutResult
from dp.tasks import Task
from dp.types import Policy
from workspaces import build, checkpoint, command, record
from workspaces.arguments import listed, shown
from workspaces.base import Config, Workspace, default_run_dir
from workspaces.rollouts import counted, disturbances, metrics_of, named, save_media, text_of
from workspaces.schema import check
from workspaces.settings import group, groups_with, key, keys_with
from workspaces.trust import POLICY, check_component, check_sizes, check_targets, packages_of

log = logging.getLogger(__name__)

SCHEDULE = tuple(key.removeprefix("scheduler.") for key in keys_with("identity") if key.startswith("scheduler."))
"""Keys of the noise schedule that the denoiser was trained with. Another sampler must keep them."""

OWN = groups_with("verb", "place", "output", "speed", "protocol", "guidance")
"""Settings that an evaluation chooses. All others come from the checkpoint."""

MAY_OVERRIDE = (*OWN, *groups_with("sampling"))


class EvaluateWorkspace(Workspace):
    """One evaluation: evaluation.json and videos.

    Args:
        config: the composed configuration. Only the settings in OWN count, and `scheduler` and `n_action_steps` if the
            user gave them. The rest comes from the checkpoint. With `policy`, the task and n_obs_steps count, too.
        engine: how the policy denoises (`dp.engines`): auto, eager or graph.
        baseline: evaluate a policy without a network instead of a checkpoint: do_nothing, or replay of the
            demonstrations (which needs the data set, and env_runner.start_seed=0).
    """

    verb = "evaluate"
    resolves: ClassVar[bool] = False

    def __init__(
        self,
        config: Config,
        engine: Literal["auto", "eager", "graph"],
        baseline: Literal["do_nothing", "replay"] | None,
    ) -> None:
        super().__init__(config)
        engines.choose(engine, self.device)
        chosen = {
            f"checkpoint={config['checkpoint']}": config["checkpoint"] is not None,
            f"policy={shown(config['policy'])}": config["policy"] is not None,
            f"workspace.baseline={baseline}": baseline is not None,
        }
        if sum(chosen.values()) > 1:
            raise ValueError(f"{listed([name for name in chosen if chosen[name]])}? Set one of them")
        if not any(chosen.values()):
            raise ValueError("set checkpoint=PATH (or policy=mylab.MyPolicy, or workspace.baseline=do_nothing|replay)")
        self.logger: Any = None
        self.about: dict[str, Any] = {}
        self.latency_ms = 0.0
        self.policy: Policy
        if baseline is not None:
            self.config = build.resolve({**config, "name": baseline})
            build.check(self.config)
            self.policy = _baseline(baseline, self.config)
        elif config["policy"] is not None:
            self.config = other_config(config, record.overrides())
            self.policy = build.other_policy(self.config)
            self.about = {"policy": self.config["policy"]}
            if self.policy.one_at_a_time:
                self.config["env_runner"] = {**self.config["env_runner"], "n_envs": 1}
        else:
            loaded = load_policy(config, engine, self.device)
            self.policy = loaded.policy
            self.config, self.about = loaded.config, loaded.about
        self.task = build.task(self.config)
        self.packages = self.task.packages
        runner = build.env_runner(self.config)
        if runner is None:
            raise ValueError(f"task {self.task.name} has no simulator (task.env=null): there is nothing to roll out in")
        self.env_runner: EnvRunner = runner
        if not isinstance(self.policy, DiffusionPolicy) and not isinstance(runner.guidance, Unguided):
            named = next(name for name in chosen if chosen[name])
            raise ValueError(f"guidance chooses among a policy's samples, and {named} draws none")
        if isinstance(self.policy, Replay):
            self.env_runner.max_steps = {seed: len(actions) for seed, actions in self.policy.actions.items()}
        if config["run_dir"] is None:
            self.config["name"] += "-evaluation"
            self.run_dir = default_run_dir(self.config)

    def run(self) -> float:
        """Returns the score."""
        self.take_run_dir()
        self.begin_run()
        self.logger = build.logger(self.config, self, "evaluate")
        self.latency_ms = self.env_runner.latency_ms(self.policy, self.device)
        result = self.env_runner.run(self.policy, self.device)
        metrics = {**metrics_of(result, None), "rollout/inference_ms": self.latency_ms}
        evaluation = {
            **{name.removeprefix("rollout/"): value for name, value in metrics.items()},
            "n_episodes": len(result.episodes),
            "task": self.task.name,
            "protocol": protocol(self.task, self.env_runner),
            **self.about,
            "settings": {
                key: self.config[key]
                for key in ("horizon", "n_obs_steps", "n_action_steps", "scheduler", "guidance", "seed")
                if key in self.config
            },
            "privileged": self.env_runner.guidance.sees_state,
            "device": str(self.device),
            "n_threads": torch.get_num_threads(),
            "precision": "fp32" if self.device.type == "cpu" else torch.get_float32_matmul_precision(),
            "episodes": [e.row() for e in result.episodes],
        }
        videos = save_media(self.run_dir, self.about.get("step", 0), result)
        write_json(self.run_dir / "evaluation.json", evaluation)
        self.logger.log(self.about.get("step", 0), metrics)
        self.logger.log_episodes(self.about.get("step", 0), evaluation["episodes"], videos)
        self.logger.summarize({"last": {"step": self.about.get("step", 0), **named("score", result.score)}})
        self._report(result, videos)
        self.score = result.score.value
        return self.score

    def _report(self, result: RolloutResult, videos: Mapping[int, Path]) -> None:
        log.info(
            "score %s  success %s  %s, seeds %d-%d  %.1f ms per action chunk%s",
            text_of(result.score), text_of(result.success, True), counted(len(result.episodes), "episode"),
            self.env_runner.seeds[0], self.env_runner.seeds[-1], self.latency_ms, self._privilege,
        )  # fmt: skip
        log.info("%s", self.run_dir / "evaluation.json")
        for episode in [e for e in result.episodes if e.seed in videos and e.success][:1]:
            log.info("a solved episode: %s", videos[episode.seed])
        trust = command.trust(packages_of(self.config))
        log.info("report: %s", command.run("workspace=report", command.override("runs", self.run_dir), *trust))

    @property
    def _privilege(self) -> str:
        return "  (privileged: guided by the environment's true state)" if self.env_runner.guidance.sees_state else ""

    def close(self, failed: bool) -> None:
        self.env_runner.close()
        if self.logger is not None:
            self.logger.close(failed)


UNUSED = (
    "encoder", "denoiser", "objective", "scheduler", "noise_draws", "init_from",
    "optimizer", "lr_schedule", "ema", "dataset",
)  # fmt: skip
"""Settings that say nothing about somebody else's policy."""


def other_config(config: Config, overrides: list[str]) -> Config:
    """The configuration to evaluate somebody else's policy with. It knows neither networks nor a horizon.

    Raises ValueError for overrides of what such a policy does not have.
    """
    typed = [key(override) for override in overrides]
    for name in typed:
        if group(name) in (*UNUSED, "horizon"):
            raise ValueError(f"{name} says nothing about policy={shown(config['policy'])}: leave it out")
    settings = config["policy"] if isinstance(config["policy"], dict) else {"_target_": config["policy"]}
    target = settings.get("_target_")
    if isinstance(settings.get("target"), str):  # in another Python
        target = settings["target"].replace(":", ".")
    config = build.resolve(
        {**config, "name": str(target).rpartition(".")[2] if "name" not in typed else config["name"]}
    )
    n_action_steps = config["n_action_steps"] if "n_action_steps" in typed else None
    kept = {name: value for name, value in config.items() if name not in UNUSED}
    kept |= {"policy": settings, "horizon": None, "n_action_steps": n_action_steps}
    check_component(kept["name"], "name")
    return kept


@dataclass(frozen=True)
class Loaded:
    """The policy of a checkpoint, the configuration it runs with, and its origin."""

    policy: DiffusionPolicy
    config: Config
    about: dict[str, Any]


def load_policy(config: Config, engine: str, device: torch.device) -> Loaded:
    """The averaged policy of `checkpoint`, ready to act on `device`. Raises ValueError for an unusable one."""
    path, state = read_policy(config["checkpoint"], config)
    config = as_typed(state, config)
    build.check_scheduler(config, record.overrides())
    policy = policy_of(path, state, config)
    if config["n_threads"] == "auto" and state.get("n_threads") is not None:
        config["n_threads"] = min(state["n_threads"], AVAILABLE)  # a second evaluation then takes as many
    policy.to(device).eval().requires_grad_(False)
    engines.speed_up_sampling(engine, policy)
    about = {"checkpoint": str(path), "step": state["step"], "trained_with": state["versions"]}
    return Loaded(policy, config, {**about, **({"origin": state["origin"]} if "origin" in state else {})})


def as_typed(state: Mapping[str, Any], given: Config) -> Config:
    """The configuration in the checkpoint `state`, with what the user typed.

    A policy of another project has no task of its own: it has the one that was typed.
    """
    typed = [override for override in record.overrides() if "origin" not in state or group(override) != "task"]
    return build.resolve(merge(state["config"], given, typed))


def load_teacher(path: str, config: Config) -> DiffusionPolicy:
    """The averaged policy of a checkpoint as it was trained. Raises ValueError for an unusable one.

    config: of the training it teaches in.
    """
    found, state = read_policy(path, config)
    return policy_of(found, state, build.resolve(state["config"]))


def read_policy(path: str, given: Config) -> tuple[Path, dict[str, Any]]:
    """A checkpoint that may be built. Raises ValueError for any other. `given`: the composed configuration."""
    found = checkpoint.find(path)
    state, where = checkpoint.load(found, given), f"checkpoint={found}"
    checkpoint.check_complete(state, ("ema", "config", "step", "versions"), where)
    check(state["config"], POLICY, where)
    check_sizes(state["config"], where)
    check_targets(state["config"], packages_of(given))
    return found, state


def policy_of(path: Path, state: Mapping[str, Any], config: Config) -> DiffusionPolicy:
    """The averaged policy of what `read_policy` returned. Raises ValueError for networks that do not fit it."""
    weights, where = state["ema"]["model"], f"checkpoint={path}"
    try:
        build.check(config)
        check_architecture(build.network_shapes(config), _of_networks(weights), where)  # before memory is taken
        policy = build.policy(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {error}. Not loaded") from error
    load_weights(policy, weights, path)
    return policy


def merge(saved: Config, given: Config, overrides: list[str]) -> Config:
    """The configuration to evaluate with: the checkpoint's, changed as far as the user may change it.

    Raises ValueError for overrides of what the weights depend on.
    """
    typed = [key(override) for override in overrides]
    for name in typed:
        if group(name) not in MAY_OVERRIDE:
            raise ValueError(f"{name} is fixed by the checkpoint. You may override {', '.join(MAY_OVERRIDE)}")
    merged = saved | {key: given[key] for key in OWN if key in given} | {"training": saved["workspace"]}
    if "weights" in merged["encoder"]:
        merged["encoder"] = merged["encoder"] | {"weights": None}  # the checkpoint has its own
    if "n_action_steps" in typed:
        merged["n_action_steps"] = given["n_action_steps"]
    merged["scheduler"] = _merge_schedulers(saved["scheduler"], given["scheduler"], typed)
    return merged


def _merge_schedulers(saved: dict[str, Any], given: dict[str, Any], typed: list[str]) -> dict[str, Any]:
    settings = {key.removeprefix("scheduler.") for key in typed if key.startswith("scheduler.")}
    for name in settings & set(SCHEDULE):
        if given[name] != saved[name]:
            raise ValueError(f"scheduler.{name}={given[name]}, but the checkpoint was trained with {saved[name]}")
    if "scheduler" in typed:
        return given | {name: saved[name] for name in SCHEDULE if name in saved and name in given}
    return saved | {name: given[name] for name in settings}


def load_weights(policy: DiffusionPolicy, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Raises ValueError, naming the first difference, if the weights are of another architecture."""
    check_architecture(policy.state_dict(), weights, f"checkpoint={path}")
    policy.load_state_dict(weights)


def check_architecture(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor], where: str) -> None:
    """Raises ValueError, naming the first difference, if `weights` do not fit a network that has `own`.

    An empty `own` fits everything.
    """
    for name in sorted(own.keys() | weights.keys()) if own else ():
        got = list(weights[name].shape) if name in weights else "missing"
        expected = list(own[name].shape) if name in own else "none"
        if got != expected:
            raise ValueError(f"{where} is of another architecture: {name} is {got}, expected {expected}")
        if weights[name].is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{where}: {name} is {weights[name].dtype}, expected {own[name].dtype}: not loaded")


def check_networks(config: Config, path: str) -> None:
    """Raises ValueError if the weights of the checkpoint `path` do not fit the networks of a typed `config`."""
    found = checkpoint.find(path)
    state, where = checkpoint.load(found, config), f"checkpoint={found}"
    checkpoint.check_complete(state, ("ema",), where)
    own = build.network_shapes(config) or _of_networks(build.policy(config).state_dict())
    check_architecture(own, _of_networks(state["ema"]["model"]), where)


def _of_networks(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if name.startswith(("encoder.", "denoiser."))}


def protocol(task: Task, runner: EnvRunner) -> dict[str, Any]:
    """The protocol, with which a score must be quoted."""
    return {
        "name": runner.protocol,
        "seeds": [runner.seeds[0], runner.seeds[-1]],
        "max_steps": runner.max_steps if isinstance(runner.max_steps, int) else "as long as the demonstration",
        **({"disturbances": harder} if (harder := disturbances(runner.kick, runner.n_late)) else {}),
        "reset": task.reset,
        "score": f"{task.score}; 95 % {'Bayesian' if 'reward' in task.bounds else 'Student'} interval",
        "success": f"{task.success}; 95 % Wilson interval",
        "versions": checkpoint.versions(task.packages),
    }


def _baseline(name: str, config: Config) -> Policy:
    if name == "do_nothing":
        _, action = build.shape_meta(config)
        idle = partial(build.task(config).idle, action_dim=action.shape[0])
        return DoNothing(idle, config["n_action_steps"])
    if name != "replay":
        raise ValueError(f"workspace.baseline={name}, expected do_nothing or replay")
    held = {seed: torch.from_numpy(a) for seed, a in build.demonstrations(config).executed_actions().items()}
    if not held:
        raise ValueError("workspace.baseline=replay: no demonstration starts from its seed's initial state")
    first = config["env_runner"]["start_seed"]
    if not held.keys() >= set(range(first, first + config["env_runner"]["n_episodes"])):
        start = min(held)
        count = next(n for n in itertools.count(1) if start + n not in held)
        raise ValueError(
            f"workspace.baseline=replay has demonstrations for seeds {start}-{start + count - 1}: give "
            f"env_runner.start_seed={start} env_runner.n_episodes={count}"
        )
    return Replay(held, config["n_action_steps"])

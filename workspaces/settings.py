"""The settings of a run: one table with the role of each key, and the checks that need only their values.

Everything that treats keys differently derives from `TABLE`: which may change when a run resumes, which an evaluation
takes from its checkpoint, which a sweep need not train for, which tell two rows of a report apart.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval

from dp import limits
from workspaces.arguments import MISSING, check_value
from workspaces.config import Config
from workspaces.logger import Mode
from workspaces.trust import check_component

Role = Literal[
    "identity",
    "training",
    "length",
    "run",
    "data",
    "source",
    "sampling",
    "guidance",
    "protocol",
    "episodes",
    "speed",
    "arithmetic",
    "place",
    "output",
    "verb",
    "outside",
]


class Entry(NamedTuple):
    """A role's meaning and its keys: `a.b` is that key alone, `a.*` is `a` and every key below it."""

    meaning: str
    keys: str


TABLE: dict[Role, Entry] = {
    "identity": Entry(
        "Identity of a policy, which its checkpoint fixes.",
        "name task.* policy.* encoder.* denoiser.* objective.* init_from horizon n_obs_steps noise_draws "
        "scheduler.num_train_timesteps scheduler.beta_schedule scheduler.beta_start scheduler.beta_end "
        "scheduler.prediction_type",
    ),
    "training": Entry(
        "Method of training. Only training reads it, and a run keeps it to its end.",
        "experiment optimizer.* lr_schedule.* ema.* dataset.* workspace.batch_size workspace.grad_accumulation "
        "workspace.max_grad_norm",
    ),
    "length": Entry("Length of a training. A finished run may be extended.", "workspace.num_steps"),
    "run": Entry(
        "Settings of a single training: its seed, how often it writes, how much it keeps.",
        "seed workspace.every.* workspace.n_best workspace.small_experiment",
    ),
    "data": Entry("Data that a policy is trained on, wherever they lie.", "dataset.sha256"),
    "source": Entry(
        "Places of the data. `dataset.sha256` says whether the data are the same.", "dataset.path dataset.source"
    ),
    "sampling": Entry(
        "Sampling of actions from a trained policy. An evaluation may choose anew.", "scheduler.* n_action_steps"
    ),
    "guidance": Entry("What is executed of what a policy samples. An evaluation chooses anew.", "guidance.*"),
    "protocol": Entry(
        "Environment and rules of a policy's test.",
        "debug debug.* env_runner env_runner._target_ env_runner.protocol env_runner.max_steps "
        "env_runner.n_train_episodes env_runner.n_late env_runner.kick task.env.* task.protocols.*",
    ),
    "episodes": Entry(
        "Episodes to roll out, and those to film.",
        "env_runner.start_seed env_runner.n_episodes env_runner.n_videos",
    ),
    "speed": Entry(
        "Numbers of processes and threads, and kernels. Results differ by rounding at most.",
        "n_threads kernels env_runner.n_envs env_runner.n_workers workspace.loader workspace.n_loader_workers",
    ),
    "arithmetic": Entry(
        "Arithmetic of a training step. Rounding differs, the method does not.",
        "workspace.precision workspace.engine workspace.compress",
    ),
    "place": Entry(
        "Device and launcher of a run, the packages that it may import, and the Python of a simulator.",
        "device launcher.* trust task.env.python",
    ),
    "output": Entry("Where results go, and in what form.", "run_dir format to logger.*"),
    "verb": Entry(
        "The command, and its checkpoint.",
        "checkpoint collector.* workspace workspace._target_ workspace.baseline workspace.media workspace.path "
        "workspace.n_episodes workspace.start_seed workspace.n_workers workspace.filter.* workspace.n_plans "
        "workspace.lr workspace.weight_decay workspace.width workspace.depth workspace.n_rounds workspace.start "
        "workspace.collect workspace.train workspace.critic workspace.evaluate workspace.afresh workspace.evaluations "
        "workspace.measure workspace.repo",
    ),
    "outside": Entry(
        "Not part of a run: keys of Hydra and of other verbs, an evaluation's copy of its training's settings.",
        "hydra.* sweep runs a b report.* training.* from fps",
    ),
}

BUILT = (
    "task", "dataset", "encoder", "denoiser", "objective", "scheduler", "optimizer", "lr_schedule", "ema",
    "guidance", "env_runner", "logger",
)  # fmt: skip
"""Groups that training builds, each a class and its arguments."""

VALUES: dict[str, Any] = {
    "name": str,
    "seed": limits.Seed,
    "device": str,
    "n_threads": Literal["auto"] | Annotated[int, Interval(ge=1, le=1024)],
    "kernels": Literal["auto", "reference"],
    "run_dir": str | None,
    "checkpoint": str | None,
    "horizon": limits.WindowSteps,
    "n_obs_steps": limits.WindowSteps,
    "n_action_steps": limits.WindowSteps,
    "noise_draws": limits.WindowSteps,
    "logger.mode": Mode,
    "scheduler.num_inference_steps": limits.DiffusionSteps,
    "scheduler.num_train_timesteps": limits.DiffusionSteps,
    "scheduler.beta_start": Annotated[float, Interval(gt=0, lt=1)],
    "scheduler.beta_end": Annotated[float, Interval(gt=0, lt=1)],
    "scheduler.prediction_type": Literal["epsilon", "sample", "v_prediction"],
    "scheduler.variance_type": Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"],
    "scheduler.solver_order": Literal[1, 2, 3],
    "env_runner.n_workers": Literal["auto"] | limits.Workers,
    "env_runner.n_episodes": limits.Positive | None,
    "env_runner.start_seed": limits.EnvSeed | None,
    "env_runner.max_steps": limits.Positive | None,
    "optimizer.lr": limits.Rate,
    "optimizer.encoder_lr": limits.Rate | None,
    "optimizer.weight_decay": limits.Rate,
    "optimizer.norm_decay": limits.Rate | None,
    "optimizer.eps": limits.Rate,
    "trust": Sequence[str],
    "init_from": str | None,
    "policy": str | Mapping[str, Any] | None,
    "lr_schedule.num_warmup_steps": limits.Count,
    "from": str,
    "to": str | None,
    "format": str,
    "fps": Annotated[float, Interval(gt=0, le=1000)] | None,
    "report.n_films": limits.Count,
    "report.publish": Literal["wandb"] | None,
}
"""Types of values that no constructor of ours declares: settings of a whole run, and arguments that classes of other
libraries would ignore, or fail with later."""

_ROLES: dict[str, Role] = {key: role for role, entry in TABLE.items() for key in entry.keys.split()}


def known_role(key: str) -> Role | None:
    """The role of `key` by the closest entry of the table; None if there is none."""
    if key in _ROLES:
        return _ROLES[key]
    parts = key.split(".")
    groups = (".".join([*parts[:n], "*"]) for n in range(len(parts), 0, -1))
    return next((_ROLES[group] for group in groups if group in _ROLES), None)


def role(key: str) -> Role:
    """The same, with "identity" for a key of the user's own: it counts wherever keys are compared."""
    return known_role(key) or "identity"


def key(typed: str) -> str:
    """The key of what a user types: "+env_runner.n_envs=3" -> "env_runner.n_envs"."""
    return typed.lstrip("+~").partition("=")[0]


def group(typed: str) -> str:
    """The first part of that: "env_runner"."""
    return key(typed).partition(".")[0]


def keys_with(*roles: Role) -> tuple[str, ...]:
    """Prefixes of the keys with these roles, for `str.startswith`."""
    groups = {key.partition(".")[0] for key in _ROLES if "." in key}
    having = [key.removesuffix(".*") for key, role in _ROLES.items() if role in roles]
    return tuple(key for key in having if key not in groups or f"{key}.*" in _ROLES)


def keys_without(*roles: Role) -> tuple[str, ...]:
    """The same for the keys with every other role."""
    return keys_with(*(other for other in TABLE if other not in roles))


def groups_with(*roles: Role) -> tuple[str, ...]:
    """First parts of keys that have one of these roles themselves, whatever those below them have."""
    return tuple(name for name in dict.fromkeys(map(group, _ROLES)) if known_role(name) in roles)


def flatten(config: Mapping[Any, Any], prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def check(config: Config) -> None:
    """Raises ValueError for values that no setting of this kind can have, and for settings that contradict each other,
    before anything is read or written."""
    check_values(config)
    horizon, n_obs, n_action = config["horizon"], config["n_obs_steps"], config["n_action_steps"]
    if horizon < n_obs - 1 + n_action:
        raise ValueError(
            f"horizon={horizon} is too short: n_obs_steps - 1 + n_action_steps = {n_obs - 1 + n_action}. "
            f"Use horizon={n_obs - 1 + n_action} or more, or n_action_steps={max(1, horizon - n_obs + 1)}"
        )
    scheduler = config["scheduler"]
    most = scheduler.get("num_train_timesteps")  # a scheduler of the user's own may have none
    if most is not None and scheduler["num_inference_steps"] > most:
        raise ValueError(
            f"scheduler.num_inference_steps={scheduler['num_inference_steps']}, expected 1 to "
            f"scheduler.num_train_timesteps={most}"
        )


def check_values(config: Config) -> None:
    """Raises ValueError if a setting of `VALUES` has a value that it cannot have."""
    for key, declared in VALUES.items():
        group, _, name = key.rpartition(".")
        held = config.get(group) if group else config
        if isinstance(held, dict) and name in held and held[name] != MISSING:
            check_value(key, held[name], declared)
    check_component(config["name"], "name")

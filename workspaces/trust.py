"""Checks files of strangers: they may hold plain values within limits, and names of our own classes.

Reading such a file with `weights_only=True` keeps pickles from running code. This module closes the remaining ways: a
class or function that the configuration names (`_target_`), a container that only a later conversion turns into a
dictionary with a `_target_` in it, and a value that becomes part of a path.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dp.tasks import Task
from dp.trusted import MAX_LAYERS, MAX_SIZE, MAX_VALUES_OBSERVED, PARTS, imported, is_from, is_ours
from workspaces.config import Config
from workspaces.schema import COMPONENT, COUNT, MAX_TEXT, NUMBER, Dense, Maybe, Range, Schema, check


@runtime_checkable
class Steppable(Protocol):
    """Methods that tell an environment's class from others."""

    def observe(self) -> Any: ...

    def step(self, action: Any) -> None: ...


MAX_DEPTH, MAX_VALUES = 20, 20_000
"""Limits of a configuration: depth, and number of values."""

MAX_ENTRIES = 500_000
"""Most values in a checkpoint, where a tensor counts as one."""

TRUSTED: dict[str, tuple[str, type]] = {
    **PARTS,
    "task": ("dp.tasks.", Task),
    "task.env": ("dp.tasks.", Steppable),
}
"""Classes that the configuration of a checkpoint may instantiate: place -> package, and class to inherit from."""

PARTIAL, OPTIONAL = ("task.env",), ("task.env",)
"""Places with `_partial_: true`, and places that may be null."""

OURS = ("dp", "workspaces", "hydra_plugins", "torch", "torchvision", "diffusers", "hydra", "optuna")
"""Packages whose classes this project's own configurations name. Naming them does not trust a package."""

_SIZES = {"shape": [Range(1, 2**16)], "type": Maybe(str), "key": Maybe(str)}

CONFIG: Schema = {
    "name": COMPONENT,
    "seed": Range(0, 2**63 - 1),
    "horizon": Maybe((Range(1, 4096), str)),
    "n_obs_steps": Maybe((Range(1, 4096), str)),
    "n_action_steps": Maybe((Range(1, 4096), str)),
    "noise_draws": Maybe((Range(1, 4096), str)),
    "scheduler": Maybe(
        {
            "_target_": str,
            "num_inference_steps": Maybe(Range(1, 10_000)),
            "num_train_timesteps": Maybe(Range(1, 10_000)),
            "prediction_type": Maybe(frozenset({"epsilon", "sample", "v_prediction"}), null=False),
        }
    ),
    "encoder": Maybe(dict),
    "denoiser": Maybe(dict),
    "objective": Maybe(dict),
    "task": {
        "name": re.compile(r"[^\x00-\x1f]{1,100}"),
        "shape_meta": {"obs": {str: _SIZES}, "action": {"shape": [Range(1, 2**16)]}},
        "env": Maybe(dict),
        "protocols": Maybe({str: {"n_episodes": Range(1, 10**6), "start_seed": COUNT, "max_steps": Range(1, 10**7)}}),
    },
    "workspace": {"num_steps": Maybe(Range(1, 10**12))},
    "env_runner": Maybe(
        {
            "protocol": Maybe(str),
            "n_episodes": Maybe(Range(1, 10**6)),
            "start_seed": Maybe(COUNT),
            "max_steps": Maybe((Range(1, 10**7), str)),
            "n_late": Maybe(COUNT, null=False),
            "kick": Maybe(Range(0, 10**6, whole=False), null=False),
        }
    ),
    "dataset": Maybe({"path": Maybe((str, [str])), "sha256": Maybe(re.compile("[0-9a-f]{6,64}"))}),
    "logger": Maybe({"mode": Maybe(str), "project": Maybe(str), "group": Maybe(str)}),
    "training": Maybe({"num_steps": Maybe(Range(1, 10**12))}),
}
"""Schema of every verb's configuration, as far as it is used from a file. Machines can bear its upper limits."""

POLICY: Schema = CONFIG | {
    **dict.fromkeys(("horizon", "n_obs_steps", "n_action_steps", "noise_draws"), Range(1, 4096)),
    **{key: {"_target_": str} for key in ("encoder", "denoiser", "objective")},
    "scheduler": CONFIG["scheduler"].inner | {"num_inference_steps": Range(1, 10_000)},
    "env_runner": CONFIG["env_runner"].inner,
}
"""Schema of a configuration from which a policy is built."""

BEST: Schema = {
    "step": COUNT,
    "file": COMPONENT,
    "score": NUMBER,
    "metric": Maybe(str),
    str: Maybe((NUMBER, float)),
}
"""Schema of an entry of the best checkpoints. The ends of an interval may be nan."""

STATE: Schema = {
    "step": Maybe(COUNT, null=False),
    "score": Maybe(NUMBER),
    "evaluated": Maybe(bool, null=False),
    "precision": Maybe(frozenset({"fp32", "bf16"}), null=False),
    "n_threads": Maybe(Range(1, 1024)),
    "metrics_offset": Maybe(Range(0, 10**15), null=False),
    "training_s": Maybe(Range(0, 10**12, whole=False), null=False),
    "config": Maybe(dict, null=False),
    "versions": Maybe({str: str}, null=False),
    "origin": Maybe(str, null=False),
    "ema": Maybe({"model": dict, "num_updates": Maybe(COUNT, null=False)}, null=False),
    "policy": Maybe(dict, null=False),
    "optimizer": Maybe(dict, null=False),
    "lr_schedule": Maybe(dict, null=False),
    "best": Maybe([BEST], null=False),
    "wandb_id": Maybe(COMPONENT),
    "rng": Maybe(Dense(torch.uint8, tuple(torch.get_rng_state().shape)), null=False),
    "rng_cuda": Maybe(Dense(torch.uint8, (None,))),
    "pending": Maybe(Dense(torch.float32, (None, 2)), null=False),
}
"""Schema of a checkpoint. Optional entries belong to trainings, or to later versions."""

TRAINING = (
    "step", "evaluated", "metrics_offset", "training_s", "config", "ema", "policy", "optimizer", "lr_schedule", "best",
    "rng", "pending",
)  # fmt: skip
"""Entries without which a training cannot go on."""


def plain(value: object, where: str) -> Any:
    """A copy of `value`, which must consist of dict, list, str, int, float, bool and None: exactly these types.

    Instantiation works on the copy, so nothing can change after the check.

    Raises:
        ValueError: another type, a key that is not text, an interpolation `${...}`, a cycle, or too large a value.
    """
    left = [MAX_VALUES]

    def copied(value: object, at: str, depth: int) -> Any:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise ValueError(
                f"{where} is nested or repeated too far at {at:.60}, which is not to be trusted: not loaded"
            )
        if type(value) is dict:
            for key in value:
                if type(key) is not str or len(key) > MAX_TEXT:
                    raise ValueError(f"{where} has the key {key!r:.60} under {at}, not to be trusted: not loaded")
            return {key: copied(inner, f"{at}.{key}".lstrip("."), depth + 1) for key, inner in value.items()}
        if type(value) is list:
            return [copied(inner, f"{at}[{i}]", depth + 1) for i, inner in enumerate(value)]
        if type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(
                f"{where} has a {type(value).__name__} at {at}, which is not to be trusted: not loaded. Expected dict, "
                "list, str, int, float, bool or null"
            )
        if isinstance(value, str) and ("${" in value or len(value) > MAX_TEXT):
            raise ValueError(f"{where} has {value!r:.60} at {at}, which is not to be trusted: not loaded")
        return value

    return copied(value, "", 0)


def check_own(config: Config) -> None:
    """Raises ValueError where a run of this configuration would write files that no later command accepts."""
    check(plain(config, "the configuration"), CONFIG, "the configuration")
    check_sizes(config, "the configuration")


def check_component(value: object, key: str) -> None:
    """Raises ValueError unless `value` is the name of a file or folder, without a path."""
    if type(value) is not str or not COMPONENT.fullmatch(value):
        raise ValueError(f"{key}={value!r:.60}, expected a name of letters, digits and _ . + - (a part of a path)")


def check_contents(state: object, where: str) -> None:
    """Raises ValueError unless `state` consists of plain values, containers and dense tensors with memory for all their
    values.

    A tensor of a few bytes can show itself as one of any size, and a few nested lists as any number of values.
    """
    left = [MAX_ENTRIES]

    def look(value: object, at: str, depth: int) -> None:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise ValueError(f"{where} is nested or repeated too far at {at:.60}: not loaded")
        if isinstance(value, Tensor):
            _check_tensor(value, at, where)
        elif type(value) in (dict, OrderedDict, list, tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):  # type: ignore[arg-type]
                if type(key) not in (str, int):
                    raise ValueError(f"{where} has the key {key!r:.60} at {at:.60}: not loaded")
                look(inner, f"{at}.{key:.60}" if isinstance(key, str) else f"{at}[{key}]", depth + 1)
        elif type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(f"{where} has a {type(value).__name__} at {at:.60}: not loaded")

    look(state, "", 0)


def _check_tensor(tensor: Tensor, at: str, where: str) -> None:
    name = at.lstrip(".")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        raise ValueError(f"{where}: {name} is not a dense tensor: not loaded")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{where}: {name} claims shape {tuple(tensor.shape)} but holds less: not loaded")


def check_weights(weights: object, where: str) -> None:
    """Raises ValueError unless `weights` maps names to tensors, real numbers that are finite."""
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{where} holds no weights: not loaded")
    for name, tensor in weights.items():
        if type(name) is not str or not isinstance(tensor, Tensor):
            raise ValueError(f"{where}: {name!r:.60} is not a tensor: not loaded")
        if tensor.is_complex() or (tensor.is_floating_point() and not torch.isfinite(tensor).all()):
            raise ValueError(f"{where}: {name} has values that are not finite or not real: not loaded")


def check_like(value: object, own: object, where: str) -> None:
    """Raises ValueError if `value` has another type, length or tensor shape than `own`, which it replaces.

    Fields that only one of them has, and None, are left to the caller, because versions of torch differ there.
    """
    if value is None or own is None:
        return
    numbers = (int, float, Tensor)
    if isinstance(own, Tensor):
        same = isinstance(value, Tensor) and value.shape == own.shape and value.is_floating_point() == (
            own.is_floating_point()
        )  # fmt: skip
        if not same:
            found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{where} is {found}, expected {own.dtype} {list(own.shape)}")
    elif isinstance(own, dict) and isinstance(value, dict):
        for key in own.keys() & value.keys():
            check_like(value[key], own[key], f"{where}.{key}")
    elif isinstance(own, (list, tuple)) and isinstance(value, (list, tuple)):
        if len(value) != len(own):
            raise ValueError(f"{where} has {len(value)} entries, expected {len(own)}")
        for number, (inner, expected) in enumerate(zip(value, own, strict=True)):
            check_like(inner, expected, f"{where}[{number}]")
    elif type(value) is not type(own) and not (
        isinstance(own, (int, float)) and isinstance(value, numbers) and getattr(value, "ndim", 0) == 0
    ):
        raise ValueError(f"{where} is of type {type(value).__name__}, expected {type(own).__name__}")


def check_sizes(config: Config, where: str) -> None:
    """Raises ValueError if a policy of this configuration could take any amount of memory.

    This checks single arguments. `workspaces.evaluate` compares the whole network with the weights in the file.
    """

    def look(value: object, at: str) -> None:
        if isinstance(value, int) and abs(value) > MAX_SIZE:
            raise ValueError(f"{where} has {at}={value!r:.40}, expected at most {MAX_SIZE}: not loaded")
        if isinstance(value, list) and len(value) > MAX_LAYERS:
            raise ValueError(f"{where} has {len(value)} values in {at}, expected at most {MAX_LAYERS}: not loaded")
        for key, inner in _items(value):
            look(inner, f"{at}.{key}")

    for place in ("encoder", "denoiser", "objective"):
        if config[place]["_target_"].startswith("dp."):
            look(config[place], place)
    for name, entry in config["task"]["shape_meta"]["obs"].items():
        if math.prod(entry["shape"]) > MAX_VALUES_OBSERVED:
            raise ValueError(f"{where} has an observation {name} of shape {entry['shape']}: not loaded")
    resize = config["encoder"].get("resize")
    if isinstance(resize, list) and math.prod([3, *resize]) > MAX_VALUES_OBSERVED:
        raise ValueError(f"{where} has encoder.resize={resize}: not loaded")


def _items(value: object) -> Iterable[tuple[object, object]]:
    return value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()


def check_targets(config: Config, trusted: Collection[str] = (), places: Collection[str] = tuple(TRUSTED)) -> None:
    """Raises ValueError if instantiating one of `places` of a checkpoint's `config` could run a stranger's code.

    `config` is what `plain` returned. Its targets must be the expected classes, not merely names with the right
    beginning ("dp.rollouts.pool.os.system" does), or come from one of the packages `trusted`.
    """
    for place in places:
        package, kind = TRUSTED[place]
        node = _node(config, place)
        if node is None and place in OPTIONAL:
            continue
        if not isinstance(node, dict):
            raise ValueError(f"the checkpoint has {place}={node!r:.60}, expected a class and its arguments: not loaded")
        target = node.get("_target_")
        if not is_ours(target, package, kind) and not is_from(target, trusted):
            raise ValueError(_distrust(f"{place}._target_={target}", target))
        for argument in getattr(imported(str(target)), "module_arguments", ()):
            module, colon, _ = str(node.get(argument)).partition(":")
            if colon and module.partition(".")[0] not in trusted:
                raise ValueError(_distrust(f"{place}.{argument}={node.get(argument)}", module))
        for argument, program in _programs(node).items():
            if program not in trusted:
                raise ValueError(
                    f"the checkpoint names the program {place}.{argument}={program}, which is not to be trusted: not "
                    f"loaded. If it is yours, add trust=[{program}]"
                )
        if place in PARTIAL and node.get("_partial_") is not True:
            raise ValueError(
                f"the checkpoint has {place}._partial_={node.get('_partial_')}, expected "
                "true, which is not to be trusted: not loaded"
            )
        own = {"_target_", *(["_partial_"] if node.get("_partial_") is (place in PARTIAL) else [])}
        below = {name.removeprefix(f"{place}.") for name in TRUSTED if name.startswith(f"{place}.")}
        _check_nested({key: value for key, value in node.items() if key not in own | below}, place, trusted)
    for key in ("horizon", "n_obs_steps", "n_action_steps", "noise_draws"):
        _check_nested(config.get(key), key, ())


def check_part(node: object, place: str, ours: Collection[str], trusted: Collection[str]) -> None:
    """Raises ValueError unless `node`, a part of a run's `config.yaml`, names one of the targets `ours`, or one from a
    package that is `trusted`."""
    target = node.get("_target_") if isinstance(node, dict) else None
    if not isinstance(node, dict) or not (target in ours or is_from(target, trusted)):
        raise ValueError(_distrust(f"{place}._target_={target}", target).replace("the checkpoint", "config.yaml"))
    _check_nested({key: value for key, value in node.items() if key != "_target_"}, place, trusted)


def packages_of(config: Mapping[str, Any]) -> list[str]:
    """The packages besides ours that the targets of a configuration come from, its programs, and what it trusts."""
    found = set(config.get("trust") or ())

    def look(node: object) -> None:
        if isinstance(node, dict):
            target = node.get("_target_")
            if isinstance(target, str) and target.partition(".")[0] not in OURS:
                found.add(target.partition(".")[0])
            found.update(_programs(node).values())
            for inner in node.values():
                look(inner)
        elif isinstance(node, list):
            for inner in node:
                look(inner)

    look(config)
    return sorted(found)


def _programs(node: Mapping[str, Any]) -> dict[str, str]:
    """Argument -> path of the programs that a class of ours would start."""
    target = node.get("_target_")
    names = getattr(imported(str(target)), "program_arguments", ()) if str(target).startswith("dp.tasks.") else ()
    return {name: str(node[name]) for name in names if node.get(name) is not None}


def _node(config: Config, place: str) -> Any:
    node: Any = config
    for key in place.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _distrust(what: str, target: object) -> str:
    root = target.partition(".")[0] if isinstance(target, str) else ""
    advice = f". If the package is yours, or you trust it, add trust=[{root}]" if root.isidentifier() else ""
    return f"the checkpoint names {what}, which is not to be trusted: not loaded{advice if root not in OURS else ''}"


def _check_nested(value: object, place: str, trusted: Collection[str]) -> None:
    """Raises ValueError for a key with a meaning for Hydra, unless it names a trusted target."""
    if isinstance(value, dict):
        special = {key for key in value if key.startswith("_")}
        if special and not (special <= {"_target_", "_partial_"} and is_from(value.get("_target_"), trusted)):
            raise ValueError(_distrust(f"{value!r:.80} under {place}", value.get("_target_")))
        for inner in value.values():
            _check_nested(inner, place, trusted)
    elif isinstance(value, list):
        for inner in value:
            _check_nested(inner, place, trusted)

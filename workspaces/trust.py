"""What a file may say when somebody else wrote it: plain values, within limits, and names of classes that are ours.

Reading such a file with `weights_only=True` keeps pickles from running code. Three ways remain, and are closed here: a
class or function that the configuration names (`_target_`), a container that only a later conversion turns into a
dictionary with a `_target_` in it, and a value that becomes part of a path.
"""

import importlib
import inspect
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from dp.tasks import Task
from workspaces.config import Config


@runtime_checkable
class Steppable(Protocol):
    """What tells an environment's class from others."""

    def observe(self) -> Any: ...

    def step(self, action: Any) -> None: ...


MAX_DEPTH, MAX_VALUES, MAX_TEXT = 20, 20_000, 100_000
"""Limits of a configuration: nesting, number of values, characters of one text."""

COMPONENT = re.compile(r"\w[\w.+-]{0,99}")
"""One component of a path that cannot lead out of its directory."""

TRUSTED: dict[str, tuple[str, type]] = {
    "encoder": ("dp.encoders.", nn.Module),
    "denoiser": ("dp.denoisers.", nn.Module),
    "objective": ("dp.objectives.", nn.Module),
    "scheduler": ("diffusers.", SchedulerMixin),
    "task": ("dp.tasks.", Task),
    "task.env": ("dp.tasks.", Steppable),
}
"""What the configuration of a checkpoint may instantiate: at each place a subclass of that kind from that package."""

PARTIAL, OPTIONAL = ("task.env",), ("task.env",)
"""Places where a class is made later, and where there may be none."""

OURS = ("dp", "workspaces", "hydra_plugins", "torch", "torchvision", "diffusers", "hydra", "optuna")
"""Packages whose classes this project's own configurations name. Naming them says nothing about trust."""

Range = tuple[float, float]

FIELDS: dict[str, type | Range] = {
    "step": (0, 10**12),
    "evaluated": bool,
    "precision": str,
    "n_threads": (1, 4096),
    "metrics_offset": (0, 10**15),
    "training_s": (0, 10**12),
    "config": dict,
    "versions": dict,
    "ema": dict,
    "policy": dict,
    "optimizer": dict,
    "lr_schedule": dict,
    "best": list,
    "wandb_id": str,
    "rng": Tensor,
    "pending": Tensor,
}
"""Type of each entry of a checkpoint, or the range of a number. `training_s` alone may be a fraction."""


def plain(value: object, where: str) -> Any:
    """A copy of `value`, which must consist of dict, list, str, int, float, bool and None: exactly these types.

    Instantiation works on the copy, so nothing can turn into something else after it was checked.

    Raises:
        ValueError: another type, a key that is not text, an interpolation `${...}`, a cycle, or too large a value.
    """
    left = [MAX_VALUES]

    def copied(value: object, at: str, depth: int) -> Any:
        left[0] -= 1
        if depth > MAX_DEPTH or left[0] < 0:
            raise ValueError(f"{where} is nested or repeated too far at {at:.60}, not to be trusted: not loaded")
        if type(value) is dict:
            for key in value:
                if type(key) is not str:
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


def check_component(value: object, key: str) -> None:
    """Raises ValueError unless `value` can be the name of a file or folder and nothing else."""
    if type(value) is not str or not COMPONENT.fullmatch(value):
        raise ValueError(f"{key}={value!r:.60}, expected a name of letters, digits and _ . + - (a part of a path)")


def check_fields(state: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where an entry of a checkpoint has another type or range than it is used with."""
    for name, expected in FIELDS.items():
        if name not in state:
            continue
        value = state[name]
        if isinstance(expected, tuple):
            exact = type(value) is int or (name == "training_s" and type(value) is float)
            sound = exact and math.isfinite(value) and expected[0] <= value <= expected[1]
        else:
            sound = type(value) is expected or (expected is dict and isinstance(value, dict))  # state dicts are ordered
        if not sound:
            wanted = (
                "a number from {:g} to {:g}".format(*expected) if isinstance(expected, tuple) else expected.__name__
            )
            raise ValueError(f"{where} has {name}={value!r:.60}, expected {wanted}: not loaded")
    if "wandb_id" in state:
        check_component(state["wandb_id"], f"wandb_id of {where}")
    for entry in state.get("best", []):
        _check_best(entry, where)
    versions = state.get("versions", {})
    if not all(type(text) is str for pair in versions.items() for text in pair):
        raise ValueError(f"{where} has versions={versions!r:.60}, expected names and texts: not loaded")


def _check_best(entry: object, where: str) -> None:
    numbers = entry.items() if isinstance(entry, dict) else ()
    sound = all(type(value) in (int, float) or name == "metric" for name, value in numbers if name != "file")
    sound = sound and type(dict(numbers).get("metric", "")) is str
    if not sound or not {"step", "file", "score"} <= dict(numbers).keys():
        raise ValueError(f"{where} has {entry!r:.60} among the best, expected step, file and score: not loaded")
    check_component(dict(numbers)["file"], f"a best file of {where}")


def check_weights(weights: object, where: str) -> None:
    """Raises ValueError unless `weights` maps names to dense tensors whose numbers are finite."""
    if not isinstance(weights, dict):
        raise ValueError(f"{where} holds no weights, got {type(weights).__name__}: not loaded")
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"{where}: {name} is no dense tensor: not loaded")
        if (tensor.is_floating_point() or tensor.is_complex()) and not torch.isfinite(tensor).all():
            raise ValueError(f"{where}: {name} has values that are not finite: not loaded")


def check_targets(config: Config, trusted: Collection[str] = (), places: Collection[str] = tuple(TRUSTED)) -> None:
    """Raises ValueError where instantiating one of `places` of a checkpoint's `config` could run a stranger's code.

    `config` is what `plain` returned. Its targets must be the classes we expect, not merely names that begin well
    ("dp.rollouts.pool.os.system" does), or come from one of the packages `trusted`.
    """
    for place in places:
        package, kind = TRUSTED[place]
        node = _node(config, place)
        if node is None and place in OPTIONAL:
            continue
        if not isinstance(node, dict):
            raise ValueError(f"the checkpoint has {place}={node!r:.60}, expected a class and its arguments: not loaded")
        target = node.get("_target_")
        if not _is_ours(target, package, kind) and not _is_from(target, trusted):
            raise ValueError(_distrust(f"{place}._target_={target}", target))
        for argument in getattr(_imported(str(target)), "module_arguments", ()):
            module, colon, _ = str(node.get(argument)).partition(":")
            if colon and module.partition(".")[0] not in trusted:
                raise ValueError(_distrust(f"{place}.{argument}={node.get(argument)}", module))
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
    if not isinstance(node, dict) or not (target in ours or _is_from(target, trusted)):
        raise ValueError(_distrust(f"{place}._target_={target}", target).replace("the checkpoint", "config.yaml"))
    _check_nested({key: value for key, value in node.items() if key != "_target_"}, place, trusted)


def packages_of(config: Mapping[str, Any]) -> list[str]:
    """The packages besides ours that the targets of a configuration come from, and those it trusts."""
    found = set(config.get("trust") or ())

    def look(node: object) -> None:
        if isinstance(node, dict):
            target = node.get("_target_")
            if isinstance(target, str) and target.partition(".")[0] not in OURS:
                found.add(target.partition(".")[0])
            for inner in node.values():
                look(inner)
        elif isinstance(node, list):
            for inner in node:
                look(inner)

    look(config)
    return sorted(found)


def _node(config: Config, place: str) -> Any:
    node: Any = config
    for key in place.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _distrust(what: str, target: object) -> str:
    root = target.partition(".")[0] if isinstance(target, str) else ""
    advice = f". If that package is yours, or you trust it, add trust=[{root}]" if root.isidentifier() else ""
    return f"the checkpoint names {what}, which is not to be trusted: not loaded{advice if root not in OURS else ''}"


def _is_ours(target: object, package: str, kind: type) -> bool:
    if not isinstance(target, str) or not target.startswith(package):
        return False
    found = _imported(target)
    if not inspect.isclass(found) or not found.__module__.startswith(package.split(".")[0]):
        return False
    return found is not SchedulerMixin and (kind is object or issubclass(found, kind))


def _is_from(target: object, trusted: Collection[str]) -> bool:
    """Whether `target` is defined in one of these packages: a name that another module lends them is not."""
    if not isinstance(target, str) or target.partition(".")[0] not in trusted:
        return False
    found = _imported(target)
    if found is None:
        raise ValueError(
            f"{target} cannot be imported, although trust names its package: pip install -e it, or put it on the path "
            "with PYTHONPATH=FOLDER"
        )
    return callable(found) and getattr(found, "__module__", "").partition(".")[0] == target.partition(".")[0]


def _imported(target: str) -> Any:
    module_name, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError):
        return None


def _check_nested(value: object, place: str, trusted: Collection[str]) -> None:
    """Raises ValueError for a key that means something to Hydra, unless it names something that is trusted."""
    if isinstance(value, dict):
        special = {key for key in value if key.startswith("_")}
        if special and not (special <= {"_target_", "_partial_"} and _is_from(value.get("_target_"), trusted)):
            raise ValueError(_distrust(f"{value!r:.80} under {place}", value.get("_target_")))
        for inner in value.values():
            _check_nested(inner, place, trusted)
    elif isinstance(value, list):
        for inner in value:
            _check_nested(inner, place, trusted)

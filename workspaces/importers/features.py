"""Finds the observations of a task that another project's policy takes as its inputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dp.modalities import Modality, Spec, parse_shape_meta
from workspaces.arguments import MISSING
from workspaces.config import CONFIGS, Config


@dataclass(frozen=True)
class Feature:
    """An input of a policy, or its action.

    shape: of one step; of an image (3, Y, X). normalize: how it was normalised, as in `Spec`.
    """

    name: str
    type: Modality
    shape: tuple[int, ...]
    normalize: str = "min_max"

    def fits(self, spec: Spec) -> bool:
        """Whether an observation has this type and size."""
        same_size = spec.shape == self.shape if self.type == "rgb" else math.prod(spec.shape) == math.prod(self.shape)
        return spec.type == self.type and same_size

    def is_called(self, name: str, spec: Spec) -> bool:
        """Whether the observation `name` says that it is this input: by its name, or by the array it comes from."""
        return self.name in (name, spec.key) or self.name.rpartition(".")[2] == name


Observations = dict[str, list[str]]
"""Name of a feature -> names of its observations: one, or several low-dimensional ones in their order."""


def match(features: Sequence[Feature], action: Feature, given: Config, where: str) -> tuple[Observations, Config]:
    """The observations of the task in `given` that the policy takes as its `features`, and the task's settings with
    these observations alone.

    Raises ValueError, with what to type instead, if the task has no such observations or another action. `where`: the
    policy's file.
    """
    task = given["task"]
    found = None if task["shape_meta"] == MISSING else assign(features, action, task["shape_meta"])
    if found is None:
        raise ValueError(_mismatch(features, action, task["name"], where))
    normalize = {name: feature.normalize for feature in features for name in found[feature.name]}
    obs = task["shape_meta"]["obs"].items()
    entries = {name: _normalized(entry, normalize[name]) for name, entry in obs if name in normalize}
    acts = _normalized(task["shape_meta"]["action"], action.normalize)
    return found, {**task, "shape_meta": {"obs": entries, "action": acts}}


def _normalized(entry: Mapping[str, Any], normalize: str) -> dict[str, Any]:
    same = entry.get("type") == "rgb" or (entry.get("normalize") or "min_max") == normalize
    return {**entry} if same else {**entry, "normalize": normalize}


def assign(features: Sequence[Feature], action: Feature, shape_meta: Mapping[str, Any]) -> Observations | None:
    """The observations of each feature: the one that has its name, or else the only one left of its type and size. A
    policy's only low-dimensional feature may be all of the task's. None if something fits nothing."""
    left, action_spec = parse_shape_meta(shape_meta)
    found = Observations()
    for by_name in (True, False):
        for feature in (feature for feature in features if feature.name not in found):
            fitting = [name for name, spec in left.items() if feature.fits(spec)]
            chosen = [name for name in fitting if not by_name or feature.is_called(name, left[name])]
            if len(chosen) == 1:
                found[feature.name] = chosen
                del left[chosen[0]]
    rest = [feature for feature in features if feature.name not in found]
    if len(rest) == 1 and rest[0].type == "low_dim" and sum(feature.type == "low_dim" for feature in features) == 1:
        names = [name for name, spec in left.items() if spec.type == "low_dim"]
        if sum(math.prod(left[name].shape) for name in names) == math.prod(rest[0].shape):
            found[rest[0].name] = names
    return found if len(found) == len(features) and action.fits(action_spec) else None


def _mismatch(features: Sequence[Feature], action: Feature, task: str, where: str) -> str:
    wanted = ", ".join(f"{feature.name} {list(feature.shape)}" for feature in (*features, action))
    ours = " or ".join(f"task={name}" for name in _tasks_that_fit(features, action))
    obs = ", ".join(map(_typed, features))
    meta = f"'task.shape_meta={{obs: {{{obs}}}, action: {{shape: {list(action.shape)}}}}}'"
    own = f"task=own {meta} to fine-tune it, or task=gymnasium task.env.id=ID with the same shape_meta to evaluate it"
    return f"{where} takes {wanted}, and task={task} does not have these. Type {ours or own}"


def _typed(feature: Feature) -> str:
    name = feature.name.rpartition(".")[2]
    return f"{name}: {{type: {feature.type}, shape: {list(feature.shape)}, key: {feature.name}}}"


def _tasks_that_fit(features: Sequence[Feature], action: Feature) -> list[str]:
    """Names of the tasks in configs/ that have such observations and such an action."""
    files = {file.stem: yaml.safe_load(file.read_text()) for file in sorted((CONFIGS / "task").glob("*.yaml"))}
    metas = {name: content.get("shape_meta") for name, content in files.items()}
    whole = {name: meta for name, meta in metas.items() if isinstance(meta, dict) and meta.keys() == {"obs", "action"}}
    return [name for name, meta in whole.items() if assign(features, action, meta)]

"""The normalisation of a LeRobot policy: in files of its own since version 0.4, among the weights before that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workspaces.config import Config
from workspaces.importers.features import Observations
from workspaces.importers.layout import normalizer_buffers
from workspaces.importers.lerobot.files import read_json, read_tensors
from workspaces.importers.lerobot.settings import MODES
from workspaces.schema import COMPONENT, Maybe, Range, Schema, check

EPS = 1e-8
"""What LeRobot adds to a standard deviation before it divides."""

CONSTANT = {"STATE": 1.0, "ENV": 1.0, "ACTION": 1e4}
"""Scale of a channel without any variation. LeRobot divides by 1e-8, by which an observation would lose its digits. An
action must come out as the constant whatever its sample is."""

LIMITS = {"MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90")}
"""Statistics that a mode maps to -1 and 1."""

STEPS = {
    "policy_preprocessor.json": frozenset(
        {"rename_observations_processor", "to_batch_processor", "device_processor", "normalizer_processor"}
    ),
    "policy_postprocessor.json": frozenset({"unnormalizer_processor", "device_processor"}),
}
"""Files that say what happens before and after the networks, and the steps that are known here."""

PIPELINE: Schema = {"steps": [{"registry_name": str, "config": Maybe(dict), "state_file": Maybe(COMPONENT)}]}

STEP: Schema = {
    "norm_map": {str: MODES},
    "features": dict,
    "eps": Maybe(Range(0, 1e-6, whole=False), null=False),
    "normalize_observation_keys": Maybe([str]),
}
"""Settings of the step that normalises."""

Values = dict[str, dict[str, Tensor]]
"""Feature -> name of a statistic -> numbers."""


class Statistics(NamedTuple):
    """modes: type of a feature -> how it is normalised. values: the numbers it takes."""

    modes: Mapping[str, str]
    values: Values

    def mode(self, kind: str) -> str:
        return self.modes.get(kind, "IDENTITY")

    def linear(self, name: str, kind: str) -> tuple[Tensor, Tensor] | None:
        """(scale, offset) of the map x * scale + offset to normalised values; None if they stay as they are.

        Raises ValueError if a statistic is missing.
        """
        mode, stats = self.mode(kind), self.values.get(name)
        if mode == "IDENTITY" or stats is None:
            return None
        needed = ("mean", "std") if mode == "MEAN_STD" else LIMITS[mode]
        if missing := [key for key in needed if key not in stats]:
            raise ValueError(f"it lacks the statistics {name}.{missing[0]}, which {mode} needs")
        first, second = (stats[key].double() for key in needed)
        if first.shape != second.shape:
            raise ValueError(f"its statistics {name}.{needed[0]} and {needed[1]} have different shapes")
        constant = CONSTANT.get(kind, 1.0)
        if mode == "MEAN_STD":
            scale = torch.where(second == 0, constant, 1 / (second + EPS))
            return scale, -first * scale
        scale = torch.where(first == second, constant, 2 / (second - first))
        return scale, -1 - first * scale

    def pixels(self, camera: str) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the three channels, in [0, 1]. Raises ValueError for any other numbers."""
        linear = self.linear(camera, "VISUAL")
        if linear is None:
            return [0.0] * 3, [1.0] * 3
        mean, std = (-linear[1] / linear[0]).flatten(), (1 / linear[0]).flatten()
        if len(mean) != 3 or not bool(torch.isfinite(mean).all() and (std > 0).all()):
            raise ValueError(f"its statistics of {camera} are not three finite numbers with a positive range")
        return _rounded(mean), _rounded(std)


def _rounded(numbers: Tensor) -> list[float]:
    """Numbers of 32 bits as people write them: 0.485 and not 0.4850000143."""
    return [round(number, 7) for number in numbers.tolist()]


def read_statistics(folder: Path, settings: Mapping[str, Any], weights: dict[str, Tensor]) -> Statistics:
    """From the files of the processors, or from among the `weights`, which it removes there.

    Raises ValueError if there are none, or for a processor that does anything else.
    """
    early = {name: weights.pop(name) for name in list(weights) if name.startswith(("normalize_", "unnormalize_"))}
    if (folder / "policy_preprocessor.json").is_file():
        modes, inputs = _processor(folder, "policy_preprocessor.json", "normalizer_processor")
        modes_after, outputs = _processor(folder, "policy_postprocessor.json", "unnormalizer_processor")
        modes = {**modes, "ACTION": modes_after.get("ACTION", "IDENTITY")}
        inputs.pop("action", None)
        return Statistics(modes, inputs | {name: stats for name, stats in outputs.items() if name == "action"})
    if not early:
        raise ValueError("there is no policy_preprocessor.json next to it, and no statistics are among the weights")
    values: Values = {}
    for feature in settings["input_features"]:
        values[feature] = _below(early, f"normalize_inputs.buffer_{feature.replace('.', '_')}.")
    values["action"] = _below(early, "unnormalize_outputs.buffer_action.")
    return Statistics(settings["normalization_mapping"], values)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _processor(folder: Path, name: str, step: str) -> tuple[Mapping[str, str], Values]:
    """Modes and values of the step of that name."""
    content = read_json(folder / name)
    check(content, PIPELINE, name)
    names = [entry["registry_name"] for entry in content["steps"]]
    if unknown := [entry for entry in names if entry not in STEPS[name]]:
        known = ", ".join(sorted(STEPS[name]))
        raise ValueError(f"{name} has the step {unknown[0]:.60}, which is not known here. Expected {known}")
    if names.count(step) != 1:
        raise ValueError(f"{name} has {names.count(step)} steps {step}, expected one")
    entry = content["steps"][names.index(step)]
    config = entry.get("config")
    check(config, STEP, name)
    only = {"action", *(config.get("normalize_observation_keys") or config["features"])} & config["features"].keys()
    values: Values = {}
    for key, tensor in read_tensors(folder / entry["state_file"]).items() if entry.get("state_file") else ():
        feature, _, statistic = key.rpartition(".")
        if feature in only:
            values.setdefault(feature, {})[statistic] = tensor
    return config["norm_map"], values


def buffers(
    settings: Mapping[str, Any], statistics: Statistics, found: Observations, task: Config
) -> dict[str, Tensor]:
    """Entries of our `Normalizer`. Images are normalised in the encoder."""
    entries = {**settings["input_features"], **settings["output_features"]}
    own: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if entry["type"] != "VISUAL":
            unchanged = torch.ones(entry["shape"]), torch.zeros(entry["shape"])
            scale, offset = statistics.linear(name, entry["type"]) or unchanged
            own |= normalizer_buffers(found.get(name, ["action"]), task, scale, offset)
    return own

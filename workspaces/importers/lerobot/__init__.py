"""Diffusion policies of LeRobot, as its versions up to 0.6 write them: `config.json` and `model.safetensors`."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workspaces import shipped
from workspaces.config import Config
from workspaces.importers.features import Feature, Observations, match
from workspaces.importers.layout import (
    STATE_ENCODER,
    Condition,
    check_centre,
    configuration,
    resnet,
    unet,
    warn_of_range,
)  # fmt: skip
from workspaces.importers.lerobot.files import read_tensors
from workspaces.importers.lerobot.settings import ENVIRONMENT, STATE, images, is_shared, read_settings
from workspaces.importers.lerobot.statistics import Statistics, buffers, read_statistics
from workspaces.importers.lerobot.weights import our_name

log = logging.getLogger(__name__)

PLACES = (
    "model.safetensors", "pretrained_model/model.safetensors", "checkpoints/last/pretrained_model/model.safetensors",
)  # fmt: skip
"""Files with the weights of a policy in the directories that LeRobot writes."""

NORMALIZE = {"IDENTITY": "none", "MEAN_STD": "mean_std"}
"""Modes of a normalisation that `Spec` has by another name. All others map limits to -1 and 1."""


def recognizes(path: Path) -> bool:
    """Whether `path` holds weights of LeRobot: a safetensors file that is not ours, with `config.json` next to it."""
    if path.suffix != ".safetensors" or not (path.parent / "config.json").is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") != shipped.FORMAT
    except (SafetensorError, OSError):
        return True  # `read` says what is wrong


def read(path: Path, given: Config) -> dict[str, Any]:
    """What a checkpoint of this policy would hold for evaluation and fine-tuning.

    given: the composed configuration, whose task and protocol it gets. Raises ValueError for a damaged file, for a
    field that is wrong or unknown, and if the task does not have what the policy observes.
    """
    where = f"checkpoint={path}"
    try:
        settings = read_settings(path.parent / "config.json")
        weights = read_tensors(path)
        statistics = read_statistics(path.parent, settings, weights)
        inputs = [_feature(name, entry, statistics) for name, entry in settings["input_features"].items()]
        action = _feature("action", settings["output_features"]["action"], statistics)
        found, task = match(inputs, action, given, where)
        own = _renamed(weights, settings, found, task) | buffers(settings, statistics, found, task)
        encoder = _encoder(settings, statistics)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
    _tell(settings, found, task)
    denoiser = unet(
        settings["down_dims"], settings["kernel_size"], settings["diffusion_step_embed_dim"], settings["n_groups"],
        settings["use_film_scale_modulation"],
    )  # fmt: skip
    config = configuration(_folder(path), given, task, settings, encoder, denoiser, _scheduler(settings))
    return {"config": config, "ema": {"model": own}, "step": _step(path), "versions": {}, "origin": "LeRobot"}


def _feature(name: str, entry: Mapping[str, Any], statistics: Statistics) -> Feature:
    normalize = NORMALIZE.get(statistics.mode(entry["type"]), "min_max")
    return Feature(name, "rgb" if entry["type"] == "VISUAL" else "low_dim", tuple(entry["shape"]), normalize)


def _renamed(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], found: Observations, task: Config
) -> dict[str, Tensor]:
    """The weights of the networks under our names. The condition is the state, the cameras, the environment's state."""
    order = [name for feature in (STATE, *images(settings), ENVIRONMENT) for name in found.get(feature, ())]
    camera_size = 2 * settings["spatial_softmax_num_keypoints"]
    condition = Condition(task, order, camera_size, settings["n_obs_steps"])
    seen = [found[name][0] for name in images(settings)]
    named = {our_name(name, settings, seen): tensor for name, tensor in weights.items()}
    return {name: condition.reordered(tensor, name) for name, tensor in named.items() if name is not None}


def _encoder(settings: Mapping[str, Any], statistics: Statistics) -> Config:
    cameras = images(settings)
    if not cameras:
        return STATE_ENCODER
    for shape in cameras.values():
        check_centre(settings["resize_shape"] or shape[1:], settings["crop_shape"], "config.json")
    pixels = {name: statistics.pixels(name) for name in cameras}
    if len(set(map(str, pixels.values()))) > 1:
        raise ValueError(
            f"the pixels of {' and '.join(pixels)} are normalised differently. Encoders here have one mean and std for "
            "all cameras, as LeRobot's dataset.use_imagenet_stats=true gives them"
        )
    mean, std = next(iter(pixels.values()))
    return resnet(
        settings["crop_shape"], settings["spatial_softmax_num_keypoints"], settings["use_group_norm"], mean, std,
        is_shared(settings), settings["resize_shape"],
    )  # fmt: skip


def _scheduler(settings: Mapping[str, Any]) -> Config:
    taken = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample",
             "clip_sample_range")  # fmt: skip
    return {
        "_target_": f"diffusers.{settings['noise_scheduler_type']}Scheduler",
        "num_inference_steps": settings["num_inference_steps"] or settings["num_train_timesteps"],
        **{key: settings[key] for key in taken},
    }


def _folder(path: Path) -> Path:
    """The folder that names a policy. `pretrained_model` and the step above it do not."""
    folder = path.resolve().parent
    if folder.name.startswith("pretrained_model") and folder.parent.parent.name == "checkpoints":
        return folder.parent.parent.parent
    return folder


def _step(path: Path) -> int:
    """The step of the training, from the name of the directory above; 0 if it is no number."""
    number = path.resolve().parent.parent.name
    return int(number) if re.fullmatch(r"[0-9]{1,12}", number) else 0


def _tell(settings: Mapping[str, Any], found: Observations, task: Config) -> None:
    named = ", ".join(f"{feature} as {' and '.join(names)}" for feature, names in found.items())
    log.info("a policy of LeRobot, for task=%s: it sees %s", task["name"], named)
    warn_of_range("LeRobot", settings["clip_sample"], settings["clip_sample_range"])


__all__ = ["PLACES", "read", "recognizes"]

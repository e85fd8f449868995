"""`config.json` of a LeRobot policy: the fields on which its actions depend, and those that do not matter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workspaces.importers.lerobot.files import read_json
from workspaces.schema import Maybe, Range, Schema, check

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"

MODES = frozenset({"MEAN_STD", "MIN_MAX", "IDENTITY", "QUANTILES", "QUANTILE10"})

_SIZE = Range(1, 2**16)
_PAIR = Maybe([Range(1, 4096)])
_BETA = Range(0, 1, whole=False)

USED: Schema = {
    "type": frozenset({"diffusion"}),
    "n_obs_steps": Range(1, 4096),
    "horizon": Range(1, 4096),
    "n_action_steps": Range(1, 4096),
    "input_features": {str: {"type": frozenset({"VISUAL", "STATE", "ENV"}), "shape": [_SIZE]}},
    "output_features": {"action": {"type": frozenset({"ACTION"}), "shape": [_SIZE]}},
    "normalization_mapping": {str: MODES},
    "vision_backbone": frozenset({"resnet18"}),
    "resize_shape": _PAIR,
    "crop_shape": _PAIR,
    "crop_ratio": Maybe(Range(0.01, 1, whole=False), null=False),
    "use_group_norm": bool,
    "spatial_softmax_num_keypoints": Range(1, 4096),
    "use_separate_rgb_encoder_per_camera": Maybe(bool, null=False),
    "down_dims": [_SIZE],
    "kernel_size": Range(1, 255),
    "n_groups": _SIZE,
    "diffusion_step_embed_dim": Range(4, 2**16),
    "use_film_scale_modulation": bool,
    "noise_scheduler_type": frozenset({"DDPM", "DDIM"}),
    "num_train_timesteps": Range(1, 10_000),
    "beta_schedule": str,
    "beta_start": _BETA,
    "beta_end": _BETA,
    "prediction_type": frozenset({"epsilon", "sample"}),
    "clip_sample": bool,
    "clip_sample_range": Maybe(Range(0, 1e6, whole=False), null=False),
    "num_inference_steps": Maybe(Range(1, 10_000)),
}
"""Fields on which the actions of a policy depend."""

DEFAULTS = {
    "resize_shape": None, "crop_shape": None, "crop_ratio": 1.0, "use_separate_rgb_encoder_per_camera": False,
    "clip_sample_range": 1.0, "num_inference_steps": None,
}  # fmt: skip
"""Values of fields that some versions do not write."""

UNUSED = frozenset({
    "drop_n_last_frames", "crop_is_random", "pretrained_backbone_weights", "do_mask_loss_for_padding",
    "optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_weight_decay", "scheduler_name",
    "scheduler_warmup_steps", "gradient_checkpointing", "compile_model", "compile_mode", "device", "use_amp",
    "use_peft", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path", "pretrained_revision",
})  # fmt: skip
"""Fields that concern training, the hub or the machine."""


def read_settings(file: Path) -> dict[str, Any]:
    """The fields of `USED`; `crop_shape` is the size that the networks see, or None.

    Raises ValueError for a field that is wrong, missing or unknown, naming it.
    """
    settings = read_json(file)
    if not isinstance(settings, dict):
        raise ValueError("config.json holds no fields")
    check(settings, {"type": USED["type"]}, "config.json")
    if unknown := sorted(settings.keys() - USED.keys() - UNUSED):
        raise ValueError(
            f"config.json has {unknown[0]:.60}={settings[unknown[0]]!r:.60}, a field that is not known here and may "
            "change what the policy does. If you know that it does not, remove it from config.json"
        )
    check(settings, USED, "config.json")
    if settings.get("use_peft"):
        raise ValueError("config.json has use_peft=true: merge the adapter into the weights with LeRobot first")
    settings = {**DEFAULTS, **{key: value for key, value in settings.items() if key in USED}}
    _check_inputs(settings["input_features"])
    for key in ("resize_shape", "crop_shape"):
        if settings[key] is not None and len(settings[key]) != 2:
            raise ValueError(f"config.json has {key}={settings[key]!r:.60}, expected [height, width]")
    return {**settings, "crop_shape": _crop(settings)}


def _check_inputs(inputs: Mapping[str, Any]) -> None:
    for name, entry in inputs.items():
        expected = {"STATE": STATE, "ENV": ENVIRONMENT}.get(entry["type"], name)
        if name != expected:
            raise ValueError(f"config.json has the input {name:.60} of type {entry['type']}, expected {expected}")
        if entry["type"] == "VISUAL" and (len(entry["shape"]) != 3 or entry["shape"][0] != 3):
            raise ValueError(f"config.json has {name:.60}.shape={entry['shape']!r:.60}, expected [3, height, width]")
    if STATE not in inputs:
        raise ValueError(f"config.json has the inputs {sorted(inputs)!r:.200}, expected {STATE} among them")


def _crop(settings: Mapping[str, Any]) -> list[int] | None:
    """If images are resized, their size and the ratio decide."""
    if settings["resize_shape"] is None:
        return settings["crop_shape"]
    ratio = settings["crop_ratio"]
    return [int(side * ratio) for side in settings["resize_shape"]] if ratio < 1 else None


def images(settings: Mapping[str, Any]) -> dict[str, list[int]]:
    """Camera -> shape of its images, in the order of the condition."""
    return {name: entry["shape"] for name, entry in settings["input_features"].items() if entry["type"] == "VISUAL"}


def is_shared(settings: Mapping[str, Any]) -> bool:
    """Whether one network sees several cameras."""
    return len(images(settings)) > 1 and not settings["use_separate_rgb_encoder_per_camera"]

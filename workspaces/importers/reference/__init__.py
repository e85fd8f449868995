"""Checkpoints of the paper's own code (real-stanford/diffusion_policy): a zip file of torch, pickled with dill.

Four of its policies are read: with images (through robomimic's encoder) or without, with the UNet or the transformer.
Of the networks in a file only the averaged one is read, or the trained one where none was averaged.
"""

import logging
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workspaces import archive
from workspaces.config import Config
from workspaces.importers.features import Feature, Observations, match
from workspaces.importers.layout import (
    STATE_ENCODER,
    Condition,
    cameras,
    check_centre,
    configuration,
    normalizer_buffers,
    resnet,
    unet,
    warn_of_range,
)
from workspaces.importers.reference import inert
from workspaces.importers.reference.settings import read_settings
from workspaces.importers.reference.tensors import Tensors
from workspaces.importers.reference.weights import DROPPED, map_of, n_keypoints, our_name

log = logging.getLogger(__name__)

PLACES = ("checkpoints/latest.ckpt",)
"""Files with the newest weights in the directories that the paper's code writes."""

MARKS = (b"state_dicts", b"pickles", b"omegaconf")
"""Texts in the pickle of every such checkpoint."""


def recognizes(path: Path) -> bool:
    """Whether `path` is such a checkpoint, by the texts in it. `read` runs no code of any file."""
    try:
        with zipfile.ZipFile(path) as file:
            content = b"" if archive.fault(file, path) else archive.read_pickle(file)
    except (*archive.DAMAGED, OSError):
        return False
    return all(mark in content for mark in MARKS)


def read(path: Path, given: Config) -> dict[str, Any]:
    """What a checkpoint of this policy would hold for evaluation and fine-tuning.

    given: the composed configuration, whose task and protocol it gets. Raises ValueError for a damaged file, for a
    policy or a field that is wrong or unknown, and if the task does not have what the policy observes.
    """
    where = f"checkpoint={path}"
    try:
        with zipfile.ZipFile(path) as file:
            payload = inert.load(archive.read_pickle(file))
            settings = read_settings(payload)
            weights = Tensors(file).read(_network(payload))
        inputs, action = _features(settings)
        found, task = match(inputs, action, given, where)
        own = _renamed(weights, settings, found, task)
        encoder = _encoder(settings, weights)
    except archive.DAMAGED as error:
        text = archive.reason(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from None
    named = ", ".join(f"{feature} as {' and '.join(names)}" for feature, names in found.items())
    log.info("a policy of the paper's code, for task=%s: it sees %s", task["name"], named)
    warn_of_range("the paper's code", settings["noise_scheduler"]["clip_sample"])
    config = configuration(
        path.with_suffix(""), given, task, settings, encoder, _denoiser(settings), _scheduler(settings)
    )
    config["seed"] = settings["seed"]
    origin = "real-stanford/diffusion_policy"
    return {"config": config, "ema": {"model": own}, "step": _step(payload), "versions": {}, "origin": origin}


def _network(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Entries of the averaged network, or of the trained one."""
    networks = payload["state_dicts"]
    chosen = networks.get("ema_model", networks.get("model")) if isinstance(networks, dict) else None
    if not isinstance(chosen, dict) or not chosen or not all(type(name) is str for name in chosen):
        raise ValueError("it holds no network: its state_dicts lack ema_model and model")
    return {name: node for name, node in chosen.items() if not DROPPED.fullmatch(name)}


def _features(settings: Mapping[str, Any]) -> tuple[list[Feature], Feature]:
    """The inputs of a policy, and its action. Without images it has one input, which holds everything."""
    if "obs_dim" in settings:
        obs, action = (settings["obs_dim"],), (settings["action_dim"],)
        return [Feature("obs", "low_dim", obs)], Feature("action", "low_dim", action)
    meta = settings["shape_meta"]
    inputs = [Feature(name, entry.get("type", "low_dim"), tuple(entry["shape"])) for name, entry in meta["obs"].items()]
    return inputs, Feature("action", "low_dim", tuple(meta["action"]["shape"]))


def _renamed(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], found: Observations, task: Config
) -> dict[str, Tensor]:
    """All weights under our names, with the condition in our order."""
    order = [name for names in found.values() for name in names]
    condition = Condition(task, order, 2 * n_keypoints(weights), settings["n_obs_steps"])
    named = {our_name(name, tensor, found): tensor for name, tensor in weights.items()}
    own = {name: condition.reordered(tensor, name) for name, tensor in named.items() if name is not None}
    images = cameras(task)
    for feature, names in {**found, "action": ["action"]}.items():
        if names[0] not in images:
            scale, offset = map_of(weights, feature, "scale"), map_of(weights, feature, "offset")
            own |= normalizer_buffers(names, task, scale, offset)
    return own


def _encoder(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Config:
    if "shape_meta" not in settings:
        return STATE_ENCODER
    obs = settings["shape_meta"]["obs"].items()
    images = {name: entry["shape"] for name, entry in obs if entry.get("type") == "rgb"}
    pixels = [[_numbers(map_of(weights, name, kind)) for kind in ("scale", "offset")] for name in images]
    if not pixels or any(maps != pixels[0] for maps in pixels):
        raise ValueError(f"it normalises the pixels of {sorted(images)} differently, or sees none")
    for shape in images.values():
        check_centre(shape[1:], settings["crop_shape"], "its policy")
    scale, offset = (torch.tensor(numbers) for numbers in pixels[0])
    mean, std = _numbers(-offset / scale), _numbers(1 / scale)
    group_norm = settings["obs_encoder_group_norm"]
    return resnet(settings["crop_shape"], n_keypoints(weights), group_norm, _few(mean), _few(std))


def _numbers(tensor: Tensor) -> list[float]:
    """One number or three. Raises ValueError for others."""
    numbers = tensor.flatten()
    if len(numbers) not in (1, 3) or not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"its pixels are normalised with {len(numbers)} numbers, expected one or three finite ones")
    return numbers.tolist()


def _few(numbers: list[float]) -> float | list[float]:
    return numbers if len(numbers) == 3 else numbers[0]


def _denoiser(settings: Mapping[str, Any]) -> Config:
    if "down_dims" in settings:
        return unet(
            settings["down_dims"], settings["kernel_size"], settings["diffusion_step_embed_dim"], settings["n_groups"],
            settings["cond_predict_scale"],
        )  # fmt: skip
    return {
        "_target_": "dp.denoisers.Transformer",
        "width": settings["n_emb"],
        "n_layers": settings["n_layer"],
        "n_heads": settings["n_head"],
        "n_cond_layers": settings["n_cond_layers"],
        "dropout": settings["p_drop_attn"],
        "embed_dropout": settings["p_drop_emb"],
        "causal": settings["causal_attn"],
    }


def _scheduler(settings: Mapping[str, Any]) -> Config:
    scheduler = settings["noise_scheduler"]
    return {
        **scheduler,
        "_target_": f"diffusers.{scheduler['_target_'].rpartition('.')[2]}",
        "num_inference_steps": settings["num_inference_steps"] or scheduler["num_train_timesteps"],
    }


def _step(payload: Mapping[str, Any]) -> int:
    """Steps of the training, from a pickle in the pickle; 0 if it is no number."""
    pickles = payload.get("pickles")
    content = inert.as_bytes(pickles.get("global_step")) if isinstance(pickles, dict) else None
    step = None if content is None else inert.load(content)
    return step if type(step) is int and re.fullmatch(r"\d{1,12}", str(step)) else 0


__all__ = ["PLACES", "read", "recognizes"]

"""A policy in the folder layout of LeRobot's diffusion policy (lerobot 0.4): weights, configuration and processors.

LeRobot's model is the paper's: ResNet-18 with spatial softmax, the 1-d UNet, DDPM or DDIM. Names and order of the
weights differ, and the normalisation lies in processors next to the model.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from safetensors.torch import save
from torch import Tensor, nn

from dp.denoisers.unet1d import UNet1d
from dp.encoders.image import same_centre
from dp.encoders.resnet import ResNetEncoder
from dp.files import write_bytes, write_json
from dp.modalities import Spec
from dp.objectives.diffusion import Diffusion
from dp.policy import DiffusionPolicy

SCHEDULERS = {DDPMScheduler: "DDPM", DDIMScheduler: "DDIM"}

SCHEDULE = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type", "clip_sample",
            "clip_sample_range")  # fmt: skip
"""Settings of the noise schedule that LeRobot's configuration has. All others have diffusers' defaults there."""

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"

STATE, ACTION = "observation.state", "action"


def write(policy: DiffusionPolicy, folder: Path) -> None:
    """Writes config.json, model.safetensors, and both processors with their statistics.

    Raises ValueError, naming what is needed, for a policy that LeRobot's model cannot express.
    """
    check(policy)
    write_json(folder / "config.json", config_of(policy))
    write_bytes(folder / "model.safetensors", save(weights_of(policy)))
    statistics = {name: tensor.contiguous() for name, tensor in statistics_of(policy).items()}
    features, norms = features_of(policy), {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
    settings = {"eps": 1e-8, "features": features, "norm_map": norms}
    before, after = f"{PREPROCESSOR}_step_3_normalizer_processor", f"{POSTPROCESSOR}_step_0_unnormalizer_processor"
    to_cpu = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    steps = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        to_cpu,
        {"registry_name": "normalizer_processor", "config": settings, "state_file": f"{before}.safetensors"},
    ]
    write_json(folder / f"{PREPROCESSOR}.json", {"name": PREPROCESSOR, "steps": steps})
    own = {**settings, "features": {ACTION: features[ACTION]}}
    steps = [
        {"registry_name": "unnormalizer_processor", "config": own, "state_file": f"{after}.safetensors"},
        to_cpu,
    ]
    write_json(folder / f"{POSTPROCESSOR}.json", {"name": POSTPROCESSOR, "steps": steps})
    for name in (before, after):
        write_bytes(folder / f"{name}.safetensors", save(statistics))


def check(policy: DiffusionPolicy) -> None:
    """Raises ValueError, naming the first setting that LeRobot's model does not have."""
    encoder, denoiser, objective = policy.encoder, policy.denoiser, policy.objective
    if type(encoder) is not ResNetEncoder:
        raise _refusal(f"encoder is {type(encoder).__name__}", "encoder=resnet18_paper")
    if type(denoiser) is not UNet1d:
        raise _refusal(f"denoiser is {type(denoiser).__name__}", "denoiser=unet1d")
    if type(objective) is not Diffusion or type(objective.scheduler) not in SCHEDULERS:
        name = type(getattr(objective, "scheduler", objective)).__name__
        raise _refusal(f"actions are sampled by {name}", "objective=diffusion with scheduler=ddpm or ddim")
    _check_encoder(policy, encoder)
    block = denoiser.mid_modules[0]
    film = block.film  # type: ignore[union-attr]
    if (film, denoiser.cond_merge, denoiser.skip) != ("scale_bias", "concat", "concat"):
        raise _refusal(
            f"the denoiser has film={film}, cond_merge={denoiser.cond_merge}, skip={denoiser.skip}", "denoiser=unet1d"
        )
    if isinstance(block.blocks[0].block[1], nn.LayerNorm):  # type: ignore[union-attr, index]
        raise _refusal("denoiser.norm is layer", "denoiser.norm=group")
    levels = len(denoiser.down_modules)
    if policy.horizon % 2**levels:
        raise _refusal(f"horizon={policy.horizon}", f"a multiple of {2**levels} (2 per level of denoiser.channels)")
    _check_schedule(policy, objective.scheduler)


def _check_encoder(policy: DiffusionPolicy, encoder: ResNetEncoder) -> None:
    if any(isinstance(module, nn.BatchNorm2d) for module in encoder.backbones.modules()):
        raise _refusal("encoder.norm is batch", "encoder.norm=group")
    if not isinstance(next(iter(encoder.backbones.children()))[1][-1], nn.ReLU):  # type: ignore[index]
        raise _refusal("encoder.final_relu is false", "encoder.final_relu=true (encoder=resnet18_paper)")
    if encoder.resize is not None:
        raise _refusal(f"encoder.resize is {list(encoder.resize)}", "encoder.resize=null")
    if encoder.fuse is not None:
        raise _refusal("encoder.fuse is attention", "encoder.fuse=concat")
    if not encoder.low_dim.names:
        raise _refusal("the task has no low-dimensional observation", "a robot state")
    if len({spec.shape for spec in _cameras(policy).values()}) > 1:
        raise _refusal("the cameras have images of different sizes", "one size")
    for name, spec in _cameras(policy).items():
        size = getattr(encoder.crops[encoder.cameras[name]], "size", spec.shape[1:])
        if not same_centre(spec.shape[1:], size):
            raise _refusal(f"the centre of encoder.crop={list(size)} is not theirs", "a crop that is smaller by 1")


def _check_schedule(policy: DiffusionPolicy, scheduler: Any) -> None:
    """Raises ValueError for settings of the scheduler that LeRobot leaves at diffusers' defaults."""
    known = {key: scheduler.config[key] for key in SCHEDULE}
    theirs = type(scheduler)(**known).config
    for key, value in scheduler.config.items():
        if not key.startswith("_") and key in theirs and theirs[key] != value:
            raise _refusal(f"scheduler.{key} is {value}", f"scheduler.{key}={theirs[key]}")
    if scheduler.config.prediction_type not in ("epsilon", "sample"):
        raise _refusal(f"scheduler.prediction_type is {scheduler.config.prediction_type}", "epsilon or sample")
    if policy.normalizer.clamps("action") and not scheduler.config.clip_sample:
        raise _refusal("scheduler.clip_sample is false", "scheduler.clip_sample=true")


def _refusal(found: str, needed: str) -> ValueError:
    return ValueError(f"LeRobot's diffusion policy cannot express this one: {found}. Expected {needed}")


def config_of(policy: DiffusionPolicy) -> dict[str, Any]:
    """config.json, with the names of lerobot 0.4."""
    encoder: Any = policy.encoder
    denoiser: Any = policy.denoiser
    objective: Any = policy.objective
    features, block = features_of(policy), denoiser.mid_modules[0].blocks[0].block
    crops = [crop.size for crop in encoder.crops.values() if hasattr(crop, "size")]
    return {
        "type": "diffusion",
        "n_obs_steps": policy.n_obs_steps,
        "horizon": policy.horizon,
        "n_action_steps": policy.n_action_steps,
        "input_features": {name: feature for name, feature in features.items() if name != ACTION},
        "output_features": {ACTION: features[ACTION]},
        "normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"},
        "drop_n_last_frames": max(0, policy.horizon - policy.n_action_steps - policy.n_obs_steps + 1),
        "vision_backbone": "resnet18",
        "crop_shape": list(crops[0]) if crops else None,
        "crop_is_random": True,
        "pretrained_backbone_weights": None,
        "use_group_norm": True,
        "spatial_softmax_num_keypoints": next(iter(encoder.backbones.values()))[1][0].heatmaps.out_channels,
        "use_separate_rgb_encoder_per_camera": len(encoder.backbones) > 1,
        "down_dims": [level[0].blocks[0].block[0].out_channels for level in denoiser.down_modules],
        "kernel_size": block[0].kernel_size[0],
        "n_groups": block[1].num_groups,
        "diffusion_step_embed_dim": denoiser.diffusion_step_encoder[-1].out_features,
        "use_film_scale_modulation": True,
        "noise_scheduler_type": SCHEDULERS[type(objective.scheduler)],
        **{key: objective.scheduler.config[key] for key in SCHEDULE},
        "num_inference_steps": objective.num_inference_steps,
        "device": "cpu",
        "use_amp": False,
    }


def _cameras(policy: DiffusionPolicy) -> dict[str, Spec]:
    """Our name of each camera -> its `Spec`."""
    return {name: policy.normalizer.specs[name] for name in policy.encoder.cameras}  # type: ignore[attr-defined]


def _image_key(policy: DiffusionPolicy, name: str) -> str:
    return "observation.image" if len(_cameras(policy)) == 1 else f"observation.images.{name}"


def features_of(policy: DiffusionPolicy) -> dict[str, dict[str, Any]]:
    """LeRobot's features. All low-dimensional observations together are its state, in the order of the task."""
    state = policy.encoder.low_dim.out_dim  # type: ignore[attr-defined]
    images = {
        _image_key(policy, name): {"type": "VISUAL", "shape": list(spec.shape)}
        for name, spec in _cameras(policy).items()
    }
    return {
        **images,
        STATE: {"type": "STATE", "shape": [state]},
        ACTION: {"type": "ACTION", "shape": [policy.action_dim]},
    }


def statistics_of(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Statistics that make LeRobot's normalisation ours: the values that are mapped to -1 and 1, whichever they are."""
    encoder: Any = policy.encoder
    found: dict[str, Tensor] = {}
    for key, names in ((STATE, encoder.low_dim.names), (ACTION, ["action"])):
        scale, offset = (
            torch.cat([policy.normalizer.get_buffer(f"{name}_{part}").flatten() for name in names])
            for part in ("scale", "offset")
        )
        found |= {f"{key}.min": (-1 - offset) / scale, f"{key}.max": (1 - offset) / scale}
    mean, std = encoder.standardize.mean, 1 / encoder.standardize.scale
    for name in _cameras(policy):
        key = _image_key(policy, name)
        found |= {f"{key}.mean": mean.expand(3, 1, 1).clone(), f"{key}.std": std.expand(3, 1, 1).clone()}
    return found


def weights_of(policy: DiffusionPolicy) -> dict[str, Tensor]:
    """Our weights under LeRobot's names."""
    renamed = {}
    for name, tensor in policy.denoiser.state_dict().items():  # type: ignore[attr-defined]
        if name.endswith("cond_encoder.1.weight"):
            tensor = tensor[:, _columns(policy)]
        name = re.sub(r"\.blocks\.([01])\.", lambda m: f".conv{int(m[1]) + 1}.", name)
        name = re.sub(r"((down|up)_modules\.\d+\.2)\.conv\.", r"\1.", name)
        renamed[f"diffusion.unet.{name}"] = tensor
    encoder: Any = policy.encoder
    for number, backbone in enumerate(encoder.backbones.values()):
        place = "diffusion.rgb_encoder." + (f"{number}." if len(encoder.backbones) > 1 else "")
        for name, tensor in backbone.state_dict().items():
            part, _, rest = name.partition(".")
            other = "backbone." if part == "0" else "pool.nets." if rest.startswith("0.heatmaps.") else "out."
            renamed[place + other + (rest if part == "0" else rest.rpartition(".")[2])] = tensor
        renamed[f"{place}pool.pos_grid"] = _grid(policy)
    return {name: tensor.detach().float().contiguous() for name, tensor in renamed.items()}


def _columns(policy: DiffusionPolicy) -> list[int]:
    """Order of the columns that read the condition. LeRobot has the state before the images, at every step."""
    encoder: Any = policy.encoder
    denoiser: Any = policy.denoiser
    embed, width, state = denoiser.diffusion_step_encoder[-1].out_features, encoder.out_dim, encoder.low_dim.out_dim
    features = width - state
    columns = list(range(embed))
    for step in range(policy.n_obs_steps):
        start = embed + step * width
        columns += [*range(start + features, start + width), *range(start, start + features)]
    return columns


def _grid(policy: DiffusionPolicy) -> Tensor:
    """Coordinates of the last feature map, (h * w, 2), which LeRobot keeps with its weights."""
    encoder: Any = policy.encoder
    (name, spec), *_ = _cameras(policy).items()
    crop = encoder.crops[encoder.cameras[name]]
    size = getattr(crop, "size", spec.shape[1:])
    rows, columns = (math.ceil(side / 32) for side in size)
    y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)

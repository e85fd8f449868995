"""Our side of an imported policy: its configuration, the order of its condition, the buffers of its normaliser."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dp.encoders.image import same_centre
from dp.modalities import parse_shape_meta
from workspaces.config import Config

log = logging.getLogger(__name__)

STATE_ENCODER = {"_target_": "dp.encoders.StateEncoder"}


def configuration(
    path: Path,
    given: Config,
    task: Config,
    settings: Mapping[str, Any],
    encoder: Config,
    denoiser: Config,
    scheduler: Config,
) -> Config:
    """The configuration that a checkpoint of this policy would hold. It says nothing of how it was trained.

    path: gives the run its name. settings: the policy's own, with horizon, n_obs_steps and n_action_steps.
    """
    return {
        "name": re.sub(r"[^\w.+-]|^[.+-]", "_", path.name)[:100],
        "seed": 0,
        "task": task,
        **{key: settings[key] for key in ("horizon", "n_obs_steps", "n_action_steps")},
        "noise_draws": 1,
        "encoder": encoder,
        "denoiser": denoiser,
        "objective": {"_target_": "dp.objectives.Diffusion"},
        "scheduler": scheduler,
        "env_runner": given["env_runner"],
        "workspace": {},
    }


def resnet(
    crop: Sequence[int] | None,
    n_keypoints: int,
    group_norm: bool,
    mean: float | list[float],
    std: float | list[float],
    shared: bool = False,
    resize: list[int] | None = None,
) -> Config:
    """Settings of the encoder that both projects use: a ResNet-18 and a spatial softmax per camera, and a last ReLU."""
    return {
        "_target_": "dp.encoders.ResNetEncoder",
        "crop": crop,
        "n_keypoints": n_keypoints,
        "norm": "group" if group_norm else "batch",
        "final_relu": True,
        "weights": None,
        "mean": mean,
        "std": std,
        "jitter": 0.0,
        "erase": 0.0,
        "shared": shared,
        "fuse": "concat",
        "resize": resize,
    }


def unet(channels: list[int], kernel_size: int, step_embed_dim: int, n_groups: int, film_scale: bool) -> Config:
    """Settings of the denoiser that both projects use. film_scale: whether FiLM scales, or only shifts."""
    return {
        "_target_": "dp.denoisers.UNet1d",
        "channels": channels,
        "kernel_size": kernel_size,
        "step_embed_dim": step_embed_dim,
        "n_groups": n_groups,
        "norm": "group",
        "film": "scale_bias" if film_scale else "bias",
        "cond_merge": "concat",
        "skip": "concat",
    }


def check_centre(size: Sequence[int], crop: Sequence[int] | None, where: str) -> None:
    """Raises ValueError for a centre crop that `RandomCrop` would cut one pixel further up or left."""
    if not same_centre(size, crop or size):
        raise ValueError(
            f"{where} crops {list(crop or ())} from images of {list(size)} pixels. Their centre is half a pixel "
            "from ours, so this crop cannot be imported"
        )


def warn_of_range(project: str, clip_sample: bool, clip_sample_range: float = 1.0) -> None:
    """Warns of actions that leave the range of the data in `project`, because `DiffusionPolicy` limits them."""
    if not clip_sample or clip_sample_range > 1:
        log.warning(
            "clip_sample=%s, clip_sample_range=%s: in %s its actions may leave the range of its data, here they may "
            "not", clip_sample, clip_sample_range, project,
        )  # fmt: skip


def cameras(task: Config) -> list[str]:
    specs, _ = parse_shape_meta(task["shape_meta"])
    return [name for name, spec in specs.items() if spec.type == "rgb"]


def module_name(camera: str) -> str:
    """The name that `ImageEncoder` gives the network of a camera."""
    return camera.replace(".", "_")


class Condition:
    """The observation vector of a policy, which `theirs` concatenates in that order and our encoders in another.

    camera_size: numbers per camera. n_obs_steps: To.
    """

    def __init__(self, task: Config, theirs: Iterable[str], camera_size: int, n_obs_steps: int) -> None:
        specs, _ = parse_shape_meta(task["shape_meta"])
        sizes = {name: camera_size if spec.type == "rgb" else math.prod(spec.shape) for name, spec in specs.items()}
        starts, end = {}, 0
        for name in theirs:
            starts[name] = torch.arange(end, end + sizes[name])
            end += sizes[name]
        ours = sorted(specs, key=lambda name: specs[name].type == "low_dim")  # cameras come first
        self.index = torch.cat([starts[name] for name in ours])  # (Do,)
        self.n_obs_steps = n_obs_steps

    def reordered(self, weight: Tensor, name: str) -> Tensor:
        """A weight under our `name`. If the layer reads observations, its last columns are put into our order.

        Those layers are FiLM's (2C, step + To * Do) and the transformer's (width, Do). Raises ValueError for a weight
        of another shape.
        """
        if not name.endswith(("cond_encoder.1.weight", "cond_obs_emb.weight")):
            return weight
        n_steps = self.n_obs_steps if name.endswith("cond_encoder.1.weight") else 1
        n_columns = n_steps * len(self.index)
        if weight.ndim != 2 or weight.shape[1] < n_columns:
            raise ValueError(f"{name} is {list(weight.shape)}, expected two sizes, the second at least {n_columns}")
        before, cond = weight.split([weight.shape[1] - n_columns, n_columns], dim=1)
        return torch.cat([before, cond.unflatten(1, (n_steps, -1))[..., self.index].flatten(1)], dim=1)


def normalizer_buffers(names: Sequence[str], task: Config, scale: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """Entries of `Normalizer` for the observations `names`, or for "action". One feature may hold several.

    Raises ValueError for maps of another size.
    """
    obs, action = parse_shape_meta(task["shape_meta"])
    shapes = [{**obs, "action": action}[name].shape for name in names]
    sizes = [math.prod(shape) for shape in shapes]
    if not scale.numel() == offset.numel() == sum(sizes):
        raise ValueError(f"the statistics of {', '.join(names)} have {scale.numel()} numbers, expected {sum(sizes)}")
    return {
        f"normalizer.{name}_{kind}": part.reshape(shape)
        for kind, whole in (("scale", scale), ("offset", offset))
        for name, shape, part in zip(names, shapes, whole.flatten().float().split(sizes), strict=True)
    }

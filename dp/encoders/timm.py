"""Any backbone of the library timm (PyTorch Image Models)."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp.encoders.image import Crop, Fuse, ImageEncoder, PerChannel, Resize, Size
from dp.encoders.resnet import SpatialSoftmax
from dp.limits import Share, Width
from dp.modalities import Spec

HUB = "hub"

CHANNELS_PER_GROUP = 16
"""As in the paper's ResNet."""


class TimmEncoder(ImageEncoder):
    """A backbone by its name in timm, pooled and projected.

    Args:
        specs: observation name -> `Spec`.
        model: one of `timm.list_models()`, with or without the tag of its weights ("vit_small_patch14_dinov2.lvd142m").
        weights: None to train from scratch; "hub" for the model's weights of the Hugging Face hub; or a local file with
            them (.safetensors, or a state dict of torch).
        pool: "own" (as the model pools for its classifier), "spatial_softmax" (as in the paper's encoder), or "mean"
            over the places of the last map.
        n_keypoints: of the spatial softmax.
        feature_dim: number of features per camera.
        norm: "own" (the model's), or "group" (each BatchNorm becomes a GroupNorm of 16 channels per group, with the
            scale and shift of the weights; an EMA goes with it better).
        frozen: whether the backbone stays as it is. To train it more slowly than the rest: `optimizer.encoder_lr`.
        crop, jitter, erase, shared, fuse, resize: see `ImageEncoder`.
        mean, std: of pixel values in [0, 1]; None: those that the model's weights were trained with.

    Raises:
        ValueError: if timm is not installed, knows no such model, or has no weights for it; for images that the model
            cannot take; and as `ImageEncoder` does.
    """

    def __init__(
        self,
        specs: Mapping[str, Spec],
        model: str = "resnet18",
        weights: str | None = None,
        pool: Literal["own", "spatial_softmax", "mean"] = "spatial_softmax",
        n_keypoints: Width = 32,
        feature_dim: Width = 64,
        norm: Literal["own", "group"] = "own",
        frozen: bool = False,
        crop: Crop = 84,
        mean: PerChannel | None = None,
        std: PerChannel | None = None,
        jitter: Share = 0.0,
        erase: Share = 0.0,
        shared: bool = False,
        fuse: Fuse = "concat",
        resize: Resize = None,
    ) -> None:
        timm = _timm(model)
        trained_with = timm.get_pretrained_cfg(model).to_dict()

        def network(size: Size) -> nn.Module:
            return Backbone(_created(timm, model, weights, size), pool, n_keypoints, feature_dim, norm, frozen)

        mean = trained_with["mean"] if mean is None else mean
        std = trained_with["std"] if std is None else std
        super().__init__(specs, crop, mean, std, network, feature_dim, jitter, erase, shared, fuse, resize)


class Backbone(nn.Module):
    """A timm model without its classifier, pooled and projected: (N, 3, Y, X) -> (N, feature_dim)."""

    def __init__(self, model: Any, pool: str, n_keypoints: int, feature_dim: int, norm: str, frozen: bool) -> None:
        super().__init__()
        self.pool, self.frozen = pool, frozen
        if norm == "group":
            _with_group_norm(model)
        if frozen:
            model.requires_grad_(False)
        self.model = model
        channels = model.num_features
        width = {"own": getattr(model, "head_hidden_size", None) or channels, "spatial_softmax": 2 * n_keypoints}
        self.keypoints = SpatialSoftmax(channels, n_keypoints) if pool == "spatial_softmax" else nn.Identity()
        self.project = nn.Linear(width.get(pool, channels), feature_dim)

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        if self.frozen:
            self.model.eval()  # its BatchNorm, too, stays as it is
        return self

    def forward(self, images: Float[Tensor, "N 3 Y X"]) -> Float[Tensor, "N F"]:
        seen = self.model(images) if self.pool == "own" else self._map(images)
        if self.pool == "spatial_softmax":
            seen = self.keypoints(seen)
        elif self.pool == "mean":
            seen = seen.mean((2, 3))
        return self.project(seen)

    def _map(self, images: Float[Tensor, "N 3 Y X"]) -> Float[Tensor, "N C Ym Xm"]:
        """The last feature map. Tokens of a transformer are put where their patches lie."""
        features = self.model.forward_features(images)
        if features.ndim == 3:
            grid = self.model.patch_embed.grid_size
            return features[:, self.model.num_prefix_tokens :].transpose(1, 2).unflatten(2, tuple(grid))
        return features.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", None) == "NHWC" else features


def _timm(model: str) -> Any:
    """The library. Raises ValueError if it is not installed or does not know `model`.

    Only names that it registers itself are taken: "hf-hub:..." would be built from a stranger's configuration.
    """
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError:
        raise ValueError("this encoder needs timm: pip install 'dp-pusht[timm]'") from None
    if not timm.is_model(model):
        part = model.partition(".")[0]
        similar = timm.list_models(f"*{part}*")[:5] or timm.list_models("resnet*")[:5]
        raise ValueError(f"model={model} is not one of timm's. It has, for example, {', '.join(similar)}")
    return timm


def _created(timm: Any, model: str, weights: str | None, size: Size) -> Any:
    """The model for images of `size`, without classifier. Raises ValueError for weights that cannot be had or used."""
    loads: dict[str, Any] = {"pretrained": weights is not None}
    if weights not in (None, HUB):
        if not Path(str(weights)).is_file():
            raise ValueError(f"weights={weights} is neither a file nor {HUB}")
        loads["pretrained_cfg_overlay"] = {"file": str(weights), "custom_load": False}
    try:
        made = _made(timm, model, size, loads)
        with torch.no_grad():
            made.eval()(torch.zeros(1, 3, *size))
    except Exception as error:  # of networks, files and shapes, whatever the model makes of them
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = f"model={model}" + (f" with weights={weights}" if weights is not None else "")
        raise ValueError(f"{what} cannot be made for images of {size[0]} x {size[1]}: {reason}") from error
    if weights is not None:
        with torch.random.fork_rng(devices=[]):
            again = dict(_made(timm, model, size, loads).named_parameters())
        drawn = [name for name, tensor in made.named_parameters() if not torch.equal(tensor, again[name])]
        if drawn:  # timm only warns of weights that a file lacks
            raise ValueError(f"weights={weights} does not hold the weights of model={model}: {drawn[0]} is missing")
    return made


def _made(timm: Any, model: str, size: Size, loads: Mapping[str, Any]) -> Any:
    try:
        return timm.create_model(model, num_classes=0, img_size=size, **loads)
    except TypeError as error:
        if "img_size" not in str(error):  # networks of convolutions take images of any size
            raise
        return timm.create_model(model, num_classes=0, **loads)


def _with_group_norm(module: nn.Module) -> None:
    """Puts a GroupNorm in the place of every BatchNorm, with its scale, its shift and what it does afterwards."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            groups = max(1, channels // CHANNELS_PER_GROUP)
            norm = nn.GroupNorm(groups if channels % groups == 0 else 1, channels, affine=child.affine)
            if child.affine:
                norm.weight, norm.bias = child.weight, child.bias
            # timm's own norms contain an activation: torch's call it after the norm.
            after = [
                getattr(child, part) for part in ("drop", "act") if isinstance(getattr(child, part, None), nn.Module)
            ]
            setattr(module, name, nn.Sequential(norm, *after) if after else norm)
        else:
            _with_group_norm(child)

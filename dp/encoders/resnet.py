"""The paper's image encoder."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp.encoders.image import Crop, Fuse, ImageEncoder, PerChannel, Resize, Size
from dp.kernels import Conv2d
from dp.limits import Share, Width
from dp.modalities import Spec

Norm = Literal["group", "batch"]


class ResNetEncoder(ImageEncoder):
    """ResNet-18, spatial softmax over keypoints and a linear layer (Chi et al. 2023, section III.B).

    Args:
        specs: observation name -> `Spec`.
        crop: pixels of a square, [height, width], a fraction of the image's sides, or None for no crop.
        n_keypoints: number of heat maps of the spatial softmax. A camera's features are their 2 * n_keypoints
            coordinates, projected.
        norm: "group" (GroupNorm of 16 channels per group, as in the paper) or "batch" (torchvision's BatchNorm).
        final_relu: whether a ReLU follows the linear layer, as in the reference implementation and in LeRobot.
        weights: a local file with a state dict of torchvision's resnet18, or None to train from scratch. Its classifier
            is ignored, and so is its BatchNorm unless norm is "batch".
        mean, std: of pixel values in [0, 1], one number or three. The default maps to [-1, 1].
        jitter, erase, shared, fuse, resize: see `ImageEncoder`.

    Raises:
        ValueError: if there is no camera, for a crop that does not fit, for another norm, and where `weights` is
            missing or is not a ResNet-18.
    """

    def __init__(
        self,
        specs: Mapping[str, Spec],
        crop: Crop = 84,
        n_keypoints: Width = 32,
        norm: Norm = "group",
        final_relu: bool = False,
        weights: str | None = None,
        mean: PerChannel = 0.5,
        std: PerChannel = 0.5,
        jitter: Share = 0.0,
        erase: Share = 0.0,
        shared: bool = False,
        fuse: Fuse = "concat",
        resize: Resize = None,
    ) -> None:
        features = 2 * n_keypoints

        def network(size: Size) -> nn.Module:
            resnet = trunk(norm, weights)
            head = nn.Sequential(SpatialSoftmax(512, n_keypoints), nn.Linear(features, features))
            return nn.Sequential(resnet, head.append(nn.ReLU()) if final_relu else head)

        super().__init__(specs, crop, mean, std, network, features, jitter, erase, shared, fuse, resize)


def trunk(norm: str, weights: str | None) -> nn.Sequential:
    """torchvision's resnet18 without pooling and classifier: (N, 3, Y, X) -> (N, 512, Y / 32, X / 32).

    Raises ValueError as `ResNetEncoder` does.
    """
    import torchvision  # here, because it takes half a second and only this encoder needs it

    norms: dict[str, Callable[[int], nn.Module]] = {"group": _group_norm, "batch": nn.BatchNorm2d}
    if norm not in norms:
        raise ValueError(f"norm={norm}, expected group or batch")
    resnet = torchvision.models.resnet18(weights=None, norm_layer=norms[norm])
    if weights is not None:
        _load(resnet, Path(weights))
    layers = nn.Sequential(*list(resnet.children())[:-2])
    _replace_convolutions(layers)
    return layers.to(memory_format=torch.channels_last)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


def _replace_convolutions(module: nn.Module) -> None:
    """Puts our `Conv2d` in the place of every convolution, with the same parameters."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d:
            setattr(module, name, Conv2d.like(child))
        else:
            _replace_convolutions(child)


class SpatialSoftmax(nn.Module):
    """Expected image coordinates, in [-1, 1], of `n_keypoints` learned heat maps (Finn et al. 2016, section V.A)."""

    def __init__(self, channels: int, n_keypoints: int) -> None:
        super().__init__()
        self.heatmaps = nn.Conv2d(channels, n_keypoints, kernel_size=1)

    def forward(self, x: Float[Tensor, "N C Y X"]) -> Float[Tensor, "N K2"]:
        height, width = x.shape[-2:]
        # The expected x sums attention over rows, the expected y over columns.
        attention = self.heatmaps(x).float().flatten(2).softmax(-1).unflatten(2, (height, width))  # (N, K, Y, X)
        along_x = attention.sum(2) @ torch.linspace(-1, 1, width, device=x.device)  # (N, K)
        along_y = attention.sum(3) @ torch.linspace(-1, 1, height, device=x.device)
        return torch.stack([along_x, along_y], dim=-1).flatten(1)


def _load(resnet: nn.Module, path: Path) -> None:
    """Loads from torchvision's state dict all that `resnet` has, too, except for its classifier."""
    if not path.is_file():
        raise ValueError(f"weights={path} is not a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):  # nothing that torch.save wrote
        state = None
    entries = state if isinstance(state, dict) else {}
    batch_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in resnet.modules())
    own = {name: own for name, own in resnet.state_dict().items() if not name.startswith("fc.")}
    wanted = {name: own.shape for name, own in own.items() if batch_norm or own.ndim == 4}
    loaded = {name: entries[name] for name in wanted if isinstance(entries.get(name), Tensor)}
    if {name: tensor.shape for name, tensor in loaded.items()} != wanted:
        what = "convolutions and BatchNorm" if batch_norm else "convolutions"
        raise ValueError(f"weights={path} does not hold torchvision's resnet18 (its {len(wanted)} {what})")
    resnet.load_state_dict(loaded, strict=False)

"""The paper's image encoder."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp.encoders.image import ImageEncoder
from dp.kernels import winograd


class ResNetEncoder(ImageEncoder):
    """ResNet-18 with GroupNorm, spatial softmax over keypoints and a linear layer (Chi et al. 2023, section III.B).

    Args:
        shapes: observation name -> shape of one step; needs "image" (3, Y, X).
        crop: side of the square crop, pixels.
        n_keypoints: of the spatial softmax; the image's features are their 2 * n_keypoints coordinates, projected.
        weights: a local file with a state dict of torchvision's resnet18 (its BatchNorm and classifier entries are
            ignored), or None to train from scratch.

    Raises:
        ValueError: where `weights` is missing or is not a ResNet-18.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], crop: int = 84, n_keypoints: int = 32, weights: str | None = None
    ) -> None:
        import torchvision  # here, because it takes half a second and only this encoder needs it

        resnet = torchvision.models.resnet18(weights=None, norm_layer=_group_norm)
        if weights is not None:
            _load_convolutions(resnet, Path(weights))
        for layer in resnet.modules():
            if type(layer) is nn.Conv2d and layer.kernel_size == (3, 3) and layer.stride == (1, 1):
                layer.__class__ = Conv2d  # with the same parameters
        trunk = nn.Sequential(*list(resnet.children())[:-2]).to(memory_format=torch.channels_last)
        features = 2 * n_keypoints
        head = nn.Sequential(SpatialSoftmax(512, n_keypoints), nn.Linear(features, features))
        super().__init__(shapes, crop, nn.Sequential(trunk, head), features)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with stride 1 and no bias, with fewer multiplications where `winograd` can be used."""

    def forward(self, x: Float[Tensor, "N Cin Y X"]) -> Float[Tensor, "N Cout Y X"]:
        if winograd.pays_2d(x, self.kernel_size[0]):
            return winograd.conv2d(x, self.weight, int(self.padding[0]))
        return super().forward(x)


class SpatialSoftmax(nn.Module):
    """Expected image coordinates, in [-1, 1], of `n_keypoints` learned heat maps (Finn et al. 2016, section V.A)."""

    def __init__(self, channels: int, n_keypoints: int) -> None:
        super().__init__()
        self.heatmaps = nn.Conv2d(channels, n_keypoints, kernel_size=1)

    def forward(self, x: Float[Tensor, "N C Y X"]) -> Float[Tensor, "N K2"]:
        height, width = x.shape[-2:]
        attention = self.heatmaps(x).float().flatten(2).softmax(-1).unflatten(2, (height, width))  # (N, K, Y, X)
        along_x = attention.sum(2) @ torch.linspace(-1, 1, width, device=x.device)  # (N, K)
        along_y = attention.sum(3) @ torch.linspace(-1, 1, height, device=x.device)
        return torch.stack([along_x, along_y], dim=-1).flatten(1)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


def _load_convolutions(resnet: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"encoder.weights={path} is not a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):  # nothing that torch.save wrote
        state = None
    entries = state.items() if isinstance(state, dict) else ()
    convolutions = {name: w for name, w in entries if isinstance(w, Tensor) and w.ndim == 4}
    wanted = {name: w.shape for name, w in resnet.state_dict().items() if w.ndim == 4}
    if {name: w.shape for name, w in convolutions.items()} != wanted:
        raise ValueError(
            f"encoder.weights={path} does not hold torchvision's resnet18 (its {len(wanted)} convolutions)"
        )
    resnet.load_state_dict(convolutions, strict=False)

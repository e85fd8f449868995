"""Base of the image encoders: crops, pixel values, one backbone per camera, and the low-dimensional observations."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dp.distributed import draw
from dp.encoders.attention import AttentionPool
from dp.encoders.augment import Augment
from dp.encoders.state import StateEncoder
from dp.modalities import Spec
from dp.types import Obs

Size = tuple[int, int]
"""Height and width in pixels."""

Crop = int | float | Sequence[int] | None
"""The size of a crop: the side of a square in pixels (int), [height, width] in pixels, a fraction of both sides (float
in (0, 1]), or None for the whole image."""

Resize = Sequence[int] | None
"""[height, width] in pixels that images are scaled to before anything else, or None."""

PerChannel = float | Sequence[float]
"""One number for all channels, or three."""

Fuse = Literal["concat", "attention"]
"""How the features of several cameras become one vector per step."""


SHARED = "shared"
"""Name of the backbone that sees all cameras."""


def same_centre(size: Sequence[int], crop: Sequence[int]) -> bool:
    """Whether `RandomCrop` takes the same centre as torchvision, which rounds half a pixel to the even number."""
    return all((whole - part) % 4 != 3 for whole, part in zip(size, crop, strict=True))


class RandomCrop(nn.Module):
    """A random crop in training, a new one for every image; otherwise the centre crop.

    Random numbers come from torch's default generator of the images' device. No host sync.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Float[Tensor, "N 3 Y X"]) -> Float[Tensor, "N 3 Yc Xc"]:
        n, _, height, width = images.shape
        rows, columns = self.size
        free = height - rows, width - columns
        if not self.training:
            top, left = free[0] // 2, free[1] // 2
            return images[:, :, top : top + rows, left : left + columns]
        device = images.device
        batch = torch.arange(n, device=device)
        begin = [draw(partial(torch.randint, size + 1), (n, 1), device=device) for size in free]
        row = begin[0] + torch.arange(rows, device=device)  # (N, Yc)
        column = begin[1] + torch.arange(columns, device=device)
        # Channels last in, channels last out: one gather of whole pixels.
        pixels = images.permute(0, 2, 3, 1)[batch[:, None, None], row[:, :, None], column[:, None, :]]
        return pixels.permute(0, 3, 1, 2)


class Standardize(nn.Module):
    """(x - mean) / std of pixel values in [0, 1], with one number or one per channel."""

    def __init__(self, mean: PerChannel, std: PerChannel) -> None:
        super().__init__()
        means, stds = _numbers("mean", mean), _numbers("std", std)
        if not min(stds) > 0:
            raise ValueError(f"std={std}, expected positive numbers")
        self.register_buffer("mean", _per_channel(means), persistent=False)
        self.register_buffer("scale", _per_channel([1 / number for number in stds]), persistent=False)

    def forward(self, images: Float[Tensor, "N 3 Y X"]) -> Float[Tensor, "N 3 Y X"]:
        return (images - self.get_buffer("mean")) * self.get_buffer("scale")


class ImageEncoder(nn.Module):
    """Features of all cameras, and the low-dimensional observations as they are.

    Do = number of cameras * feature_dim (fused by attention: feature_dim) + size of the low-dimensional observations.

    Args:
        specs: observation name -> `Spec`. Cameras have the type "rgb".
        crop: `Crop`, the same for all cameras, of the resized images.
        mean, std: pixel values in [0, 1] are shifted and scaled by these; the defaults of the encoders map to [-1, 1].
        backbone: size of a crop -> network that maps (N, 3, *size) to (N, feature_dim).
        feature_dim: number of features per camera.
        jitter, erase: what training does to the crops, see `Augment`.
        shared: whether one backbone sees all cameras, whose crops must have one size then.
        fuse: "concat", or "attention" over the features of all cameras at all steps (`AttentionPool`).
        resize: `Resize`, by bilinear interpolation with antialiasing, as torchvision's.

    Raises:
        ValueError: if `specs` has no camera, one that is smaller than the crop, or for unusable numbers.
    """

    def __init__(
        self,
        specs: Mapping[str, Spec],
        crop: Crop,
        mean: PerChannel,
        std: PerChannel,
        backbone: Callable[[Size], nn.Module],
        feature_dim: int,
        jitter: float = 0.0,
        erase: float = 0.0,
        shared: bool = False,
        fuse: str = "concat",
        resize: Resize = None,
    ) -> None:
        super().__init__()
        cameras = {name: spec for name, spec in specs.items() if spec.type == "rgb"}
        if not cameras:
            raise ValueError(
                f"an image encoder needs an observation of type rgb, but the task has {sorted(specs)}: use "
                "encoder=state"
            )
        self.resize = None if resize is None else _checked(resize)
        sizes = {name: crop_size(crop, name, self.resize or spec.shape[1:]) for name, spec in cameras.items()}
        self.cameras = {name: name.replace(".", "_") for name in cameras}  # torch allows no dots in a module's name
        self.standardize = Standardize(mean, std)
        self.crops = nn.ModuleDict(
            {self.cameras[name]: nn.Identity() if crop is None else RandomCrop(size) for name, size in sizes.items()}
        )
        self.augment = Augment(jitter, erase)
        self.backbone_of = {module: SHARED if shared else module for module in self.cameras.values()}
        if shared:
            sizes = {SHARED: _common(sizes)}
        self.backbones = nn.ModuleDict({self.cameras.get(name, name): backbone(size) for name, size in sizes.items()})
        self.fuse = AttentionPool(feature_dim, len(cameras)) if fuse == "attention" else None
        self.low_dim = StateEncoder({name: spec for name, spec in specs.items() if spec.type == "low_dim"})
        n_vectors = len(cameras) if self.fuse is None else 1
        self.out_dim = n_vectors * feature_dim + self.low_dim.out_dim

    def forward(self, obs: Obs) -> Float[Tensor, "B To Do"]:
        features = [self._see(obs[name], module) for name, module in self.cameras.items()]
        if self.fuse is not None:
            features = [self.fuse(torch.stack(features, dim=2))]
        return torch.cat([*features, self.low_dim(obs)] if self.low_dim.names else features, dim=-1)

    def _see(self, images: Float[Tensor, "B To 3 Y X"], module: str) -> Float[Tensor, "B To F"]:
        whole = images.flatten(0, 1)  # (B*To, 3, Y, X)
        if self.resize is not None:
            whole = F.interpolate(whole, self.resize, mode="bilinear", antialias=True)
        cropped = self.augment(self.crops[module](whole))  # (B*To, 3, Yc, Xc)
        return self.backbones[self.backbone_of[module]](self.standardize(cropped)).unflatten(0, images.shape[:2])


def _common(sizes: Mapping[str, Size]) -> Size:
    """The size of all crops. Raises ValueError if they differ."""
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"shared=true, but the crops differ: {sizes}. Give all cameras one size: encoder.crop=[HEIGHT,WIDTH]"
        )
    return next(iter(sizes.values()))


def _checked(resize: Sequence[int]) -> Size:
    """Raises ValueError for anything but a height and a width."""
    if len(resize) != 2 or min(resize) < 1:
        raise ValueError(f"resize={resize}, expected [height, width] in pixels, or null")
    return resize[0], resize[1]


def crop_size(crop: Crop, name: str, whole: Sequence[int]) -> Size:
    """The size of a crop from images of the size `whole` of the camera `name`.

    Raises ValueError if the crop is unusable or does not fit.
    """
    height, width = whole
    match crop:
        case None:
            return height, width
        case bool():
            size = None
        case int():
            size = (crop, crop)
        case float():
            size = (round(crop * height), round(crop * width)) if 0 < crop <= 1 else None
        case _:
            sides = list(crop)
            size = (sides[0], sides[1]) if len(sides) == 2 and all(type(side) is int for side in sides) else None
    if size is None:
        raise ValueError(
            f"crop={crop}, expected pixels (a whole number), [height, width], a fraction (0.0 to 1.0) or null"
        )
    if not (1 <= size[0] <= height and 1 <= size[1] <= width):
        raise ValueError(
            f"crop={crop} does not fit {name}, whose images have {height} x {width} pixels: "
            "set a smaller crop, or encoder.crop=null for none"
        )
    return size


def _numbers(name: str, value: PerChannel) -> list[float]:
    numbers = [value] if isinstance(value, int | float) else list(value)
    if len(numbers) not in (1, 3) or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"{name}={value}, expected a number or three of them")
    return [float(number) for number in numbers]


def _per_channel(numbers: list[float]) -> Tensor:
    """One number as a scalar, which is as fast as a constant; three as (3, 1, 1)."""
    return torch.tensor(numbers[0]) if len(numbers) == 1 else torch.tensor(numbers)[:, None, None]

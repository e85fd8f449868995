"""What the image encoders share: cropping, and low-dimensional observations beside the image's features."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp.encoders.state import StateEncoder
from dp.types import Obs


class RandomCrop(nn.Module):
    """A random crop in training, another one for every image; the centre crop otherwise.

    Random numbers come from torch's default generator of the images' device. No host sync.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Float[Tensor, "N 3 Y X"]) -> Float[Tensor, "N 3 size size"]:
        n, _, height, width = images.shape
        if not self.training:
            top, left = (height - self.size) // 2, (width - self.size) // 2
            return images[:, :, top : top + self.size, left : left + self.size]
        device = images.device
        span = torch.arange(self.size, device=device)
        rows = torch.randint(height - self.size + 1, (n, 1), device=device) + span  # (N, size)
        columns = torch.randint(width - self.size + 1, (n, 1), device=device) + span
        batch = torch.arange(n, device=device)
        # Channels last in, channels last out: one gather of whole pixels.
        pixels = images.permute(0, 2, 3, 1)[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
        return pixels.permute(0, 3, 1, 2)


class ImageEncoder(nn.Module):
    """Features of the cropped image, with the low-dimensional observations appended.

    `backbone` maps (N, 3, crop, crop) in [-1, 1] to (N, F); Do = F + the low-dimensional size.

    Raises ValueError where `shapes` has no square RGB image, or one smaller than the crop.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], crop: int, backbone: nn.Module, feature_dim: int) -> None:
        super().__init__()
        if "image" not in shapes:
            raise ValueError(f"an image encoder needs an 'image', the task has {sorted(shapes)}: use encoder=state")
        channels, height, width = shapes["image"]
        if channels != 3 or not 0 < crop <= min(height, width):
            raise ValueError(f"encoder.crop={crop} does not fit RGB images of shape {list(shapes['image'])}")
        self.crop = RandomCrop(crop)
        self.backbone = backbone
        self.low_dim = StateEncoder({name: shape for name, shape in shapes.items() if name != "image"})
        self.out_dim = feature_dim + self.low_dim.out_dim

    def forward(self, obs: Obs) -> Float[Tensor, "B To Do"]:
        batch, steps = obs["image"].shape[:2]
        features = self.backbone(self.crop(obs["image"].flatten(0, 1)) * 2 - 1)  # (B*To, F)
        features = features.unflatten(0, (batch, steps))
        return torch.cat([features, self.low_dim(obs)], dim=-1) if self.low_dim.names else features

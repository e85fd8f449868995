"""What training does to images beyond crops, on their device, so that a policy does not learn light and clutter."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dp.distributed import draw

AREAS, RATIOS = (0.02, 1 / 3), (0.3, 3.3)
"""Share of the image that a rectangle covers, and its height over its width (Zhong et al. 2020)."""

GREY = 0.5
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601)."""


class Augment(nn.Module):
    """Colour jitter and erased rectangles in training, drawn anew for every image; otherwise nothing.

    Random numbers come from torch's default generator of the images' device. No host sync.

    Args:
        jitter: 0 to 1. Brightness, contrast and saturation are multiplied by factors from 1 - jitter to 1 + jitter.
        erase: probability that a rectangle of the image turns grey (Zhong et al. 2020, "Random erasing").

    Raises:
        ValueError: for numbers outside 0 to 1.
    """

    def __init__(self, jitter: float, erase: float) -> None:
        super().__init__()
        for name, value in (("jitter", jitter), ("erase", erase)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}, expected a number from 0 to 1")
        self.jitter, self.erase = jitter, erase

    def forward(self, images: Float[Tensor, "N 3 Y X"]) -> Float[Tensor, "N 3 Y X"]:
        if self.training and self.jitter:
            images = _jittered(images, self.jitter)
        if self.training and self.erase:
            images = torch.where(_rectangles(images, self.erase), GREY, images)
        return images


def _jittered(images: Float[Tensor, "N 3 Y X"], strength: float) -> Float[Tensor, "N 3 Y X"]:
    """Brightness, then contrast, then saturation, each as torchvision's `ColorJitter` defines it."""
    factors = 1 + strength * (2 * draw(torch.rand, (3, len(images), 1, 1, 1), 1, device=images.device) - 1)
    images = (factors[0] * images).clamp(0, 1)
    middle = _grey(images).mean((2, 3), keepdim=True)
    images = (middle + factors[1] * (images - middle)).clamp(0, 1)
    grey = _grey(images)
    return (grey + factors[2] * (images - grey)).clamp(0, 1)


def _grey(images: Float[Tensor, "N 3 Y X"]) -> Float[Tensor, "N 1 Y X"]:
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def _rectangles(images: Float[Tensor, "N 3 Y X"], probability: float) -> Bool[Tensor, "N 1 Y X"]:
    """Where a rectangle lies, in images that have one."""
    n, _, height, width = images.shape
    chance, area, ratio, top, left = draw(torch.rand, (5, n, 1), 1, device=images.device)  # (N, 1) each
    area = AREAS[0] + (AREAS[1] - AREAS[0]) * area
    ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** ratio
    rows = _covered(height, height * (area * ratio).sqrt(), top)
    columns = _covered(width, width * (area / ratio).sqrt(), left)
    return (rows[:, :, None] & columns[:, None] & (chance < probability)[:, :, None])[:, None]


def _covered(size: int, length: Float[Tensor, "N 1"], place: Float[Tensor, "N 1"]) -> Bool[Tensor, "N size"]:
    """Which of `size` pixels a stretch of `length` covers that begins at a share `place` of what it leaves free."""
    length = length.clamp(max=size)
    begin = place * (size - length)
    pixels = torch.arange(size, device=length.device) + 0.5
    return (begin <= pixels) & (pixels < begin + length)

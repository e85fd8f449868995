"""A compact image encoder for CPUs and small GPUs."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from dp.encoders.image import ImageEncoder


class CNNEncoder(ImageEncoder):
    """Strided convolutions, a flatten and a linear layer: no pooling, so every feature knows where it was seen.

    Args:
        shapes: observation name -> shape of one step; needs "image" (3, Y, X).
        crop: side of the square crop, pixels.
        channels, kernel_sizes, strides: one entry a convolution.
        feature_dim: width of the image's features.

    Raises:
        ValueError: for a crop that the convolutions shrink to nothing, or that does not fit the image.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        crop: int = 88,
        channels: Sequence[int] = (32, 64, 96, 128),
        kernel_sizes: Sequence[int] = (5, 3, 3, 3),
        strides: Sequence[int] = (2, 2, 2, 2),
        feature_dim: int = 128,
    ) -> None:
        layers: list[nn.Module] = []
        side = crop
        for inputs, outputs, kernel, stride in zip((3, *channels), channels, kernel_sizes, strides, strict=False):
            layers += [nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU(inplace=True)]
            side = (side - kernel) // stride + 1
        if side < 1:
            raise ValueError(f"encoder.crop={crop} is too small for {len(channels)} strided convolutions")
        convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        flat = channels[-1] * side**2
        head = nn.Sequential(nn.Flatten(), nn.Linear(flat, feature_dim), nn.LayerNorm(feature_dim))
        super().__init__(shapes, crop, nn.Sequential(convolutions, head), feature_dim)

"""A compact image encoder for CPUs and small GPUs."""

from collections.abc import Mapping

import torch
from torch import nn

from dp.encoders.image import Crop, Fuse, ImageEncoder, PerChannel, Resize, Size
from dp.limits import Share, Width, Widths
from dp.modalities import Spec


class CNNEncoder(ImageEncoder):
    """Strided convolutions, a flatten and a linear layer: no pooling, so every feature knows where it was seen.

    Args:
        specs: observation name -> `Spec`.
        crop: pixels of a square, [height, width], a fraction of the image's sides, or None for no crop.
        channels, kernel_sizes, strides: one entry per convolution.
        feature_dim: number of features per camera.
        mean, std: of pixel values in [0, 1], one number or three. The default maps to [-1, 1].
        jitter, erase, shared, fuse, resize: see `ImageEncoder`.

    Raises:
        ValueError: if there is no camera, or for a crop that does not fit or that the convolutions shrink to
            nothing, or for lists of unequal length.
    """

    def __init__(
        self,
        specs: Mapping[str, Spec],
        crop: Crop = 88,
        channels: Widths = (32, 64, 96, 128),
        kernel_sizes: Widths = (5, 3, 3, 3),
        strides: Widths = (2, 2, 2, 2),
        feature_dim: Width = 128,
        mean: PerChannel = 0.5,
        std: PerChannel = 0.5,
        jitter: Share = 0.0,
        erase: Share = 0.0,
        shared: bool = False,
        fuse: Fuse = "concat",
        resize: Resize = None,
    ) -> None:
        if not len(channels) == len(kernel_sizes) == len(strides):
            raise ValueError(
                f"channels={list(channels)}, kernel_sizes={list(kernel_sizes)} and strides={list(strides)}: expected "
                "lists of equal length, one entry per convolution"
            )

        def network(size: Size) -> nn.Module:
            layers: list[nn.Module] = []
            # The linear layer needs the size of the last map.
            height, width = size
            for inputs, outputs, kernel, stride in zip((3, *channels), channels, kernel_sizes, strides, strict=False):
                layers += [nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU(inplace=True)]
                height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            if height < 1 or width < 1:
                raise ValueError(
                    f"crop={crop} leaves {size[0]} x {size[1]} pixels, too small for {len(channels)} strided "
                    "convolutions: set a larger crop or fewer encoder.channels, or use larger images"
                )
            convolutions = nn.Sequential(*layers).to(memory_format=torch.channels_last)
            flat = channels[-1] * height * width
            head = nn.Sequential(nn.Flatten(), nn.Linear(flat, feature_dim), nn.LayerNorm(feature_dim))
            return nn.Sequential(convolutions, head)

        super().__init__(specs, crop, mean, std, network, feature_dim, jitter, erase, shared, fuse, resize)

"""Statistics of LeRobot's data sets: extremes, mean, standard deviation, count and five quantiles of a feature."""

from collections.abc import Mapping
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

Statistics = Mapping[str, np.ndarray]
"""Name -> values, of the shape of one frame; of images (3, 1, 1), in [0, 1]. "count" (1,) counts frames."""


def of_numbers(values: np.ndarray) -> Statistics:
    """Of a feature of numbers (N, ...)."""
    floats = values.astype(np.float64)
    found: dict[str, Any] = {"min": values.min(0), "max": values.max(0), "mean": floats.mean(0), "std": floats.std(0)}
    found |= {name: np.quantile(floats, q, axis=0) for name, q in QUANTILES.items()}
    return {**found, "count": np.array([len(values)])}


def histogram(images: np.ndarray) -> np.ndarray:
    """Number of pixels of every level, of uint8 images (N, Y, X, 3): (3, 256)."""
    return np.stack([np.bincount(images[..., channel].ravel(), minlength=256) for channel in range(3)])


def of_images(counts: np.ndarray, n_frames: int) -> Statistics:
    """Of images with this histogram (3, 256). Exact, since there are 256 levels."""
    levels = np.arange(256) / 255
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    seen = [np.flatnonzero(channel) for channel in counts]
    found = {
        "min": np.array([levels[channel[0]] for channel in seen]),
        "max": np.array([levels[channel[-1]] for channel in seen]),
        "mean": mean,
        "std": np.sqrt(np.maximum(share @ levels**2 - mean**2, 0)),
    }
    up_to = np.cumsum(share, axis=1)
    found |= {name: levels[(up_to < q - 1e-12).sum(1)] for name, q in QUANTILES.items()}
    return {**{name: values.reshape(3, 1, 1) for name, values in found.items()}, "count": np.array([n_frames])}

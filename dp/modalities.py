"""What an observation or action is (`Spec`), and how its raw values become what a network reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

Modality = Literal["rgb", "low_dim"]


@dataclass(frozen=True)
class Spec:
    """One observation, or the action, as `shape_meta` declares it.

    type: "rgb" (raw uint8 (..., Y, X, 3), for networks float (..., 3, Y, X) in [0, 1]) or "low_dim" (raw float32
    (..., *shape), for networks normalised).
    shape: of one step; of an image (3, Y, X).
    key: array of the data set that it comes from; by default its name.
    normalize: of a low_dim entry: "min_max" (to [-1, 1]), "mean_std", "none", or fixed limits that map to [-1, 1],
    {"low": ..., "high": ...}, numbers or lists of the entry's shape.
    """

    type: Modality
    shape: tuple[int, ...]
    key: str
    normalize: str | Mapping[str, Any] = "min_max"

    @classmethod
    def parse(cls, name: str, entry: object) -> "Spec":
        """From {"type": ..., "shape": [...], "key": ..., "normalize": ...}. Raises ValueError, naming the entry."""
        if not isinstance(entry, Mapping):
            raise ValueError(f"shape_meta: {name}={entry}, expected {{type: rgb or low_dim, shape: [...]}}")
        unknown = set(entry) - {"type", "shape", "key", "normalize"}
        kind, shape = entry.get("type", "low_dim"), entry.get("shape")
        if unknown:
            raise ValueError(f"shape_meta: {name} has {sorted(unknown)}, expected type, shape, key or normalize")
        if kind not in ("rgb", "low_dim"):
            raise ValueError(f"shape_meta: {name}.type={kind}, expected rgb or low_dim")
        sizes = list(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else None
        if sizes is None or not all(type(n) is int and n > 0 for n in sizes) or (kind == "low_dim" and not sizes):
            raise ValueError(f"shape_meta: {name}.shape={shape}, expected a list of whole numbers")
        if kind == "rgb" and (len(sizes) != 3 or sizes[0] != 3):
            raise ValueError(f"shape_meta: {name}.shape={shape}, expected [3, height, width] of an rgb image")
        return cls(kind, tuple(sizes), str(entry.get("key") or name), entry.get("normalize") or "min_max")


def parse_shape_meta(shape_meta: Mapping[str, Any]) -> tuple[dict[str, Spec], Spec]:
    """(observations by name, action) of {"obs": {name: entry}, "action": entry}. Raises ValueError, naming an entry."""
    if not isinstance(shape_meta, Mapping) or not isinstance(shape_meta.get("obs"), Mapping) or not shape_meta["obs"]:
        raise ValueError(f"shape_meta={shape_meta}, expected {{obs: {{name: ...}}, action: {{shape: [...]}}}}")
    action = Spec.parse("action", shape_meta.get("action"))
    if action.type != "low_dim" or len(action.shape) != 1:
        raise ValueError(
            f"shape_meta: action is {action.type} {list(action.shape)}, expected low_dim with one dimension"
        )
    return {name: Spec.parse(name, entry) for name, entry in shape_meta["obs"].items()}, action


def image_to_float(image: UInt8[Tensor, "*B Y X 3"]) -> Float[Tensor, "*B 3 Y X"]:
    """Pixels 0..255, channels last -> [0, 1], channels first (in memory still last, which convolutions like)."""
    return image.movedim(-1, -3).float() / 255


CONSTANT_RANGE = 1e-4
"""A channel that varies by less than this maps to 0 instead of being blown up (reference: `range_eps`)."""


class Normalizer(nn.Module):
    """Maps each named array linearly, channel by channel, so that the data it was fitted on fills [-1, 1].

    A constant channel becomes 0 and comes back as the constant. Matches `LinearNormalizer(mode="limits")` of the
    reference implementation.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_buffer(f"{name}_scale", torch.ones(tuple(shape)))
            self.register_buffer(f"{name}_offset", torch.zeros(tuple(shape)))

    @classmethod
    def fit(cls, arrays: Mapping[str, Tensor]) -> "Normalizer":
        """Statistics of `arrays`: name -> (N, *shape), any units. Raises ValueError where a value is not finite."""
        normalizer = cls({name: array.shape[1:] for name, array in arrays.items()})
        for name, array in arrays.items():
            low, high = array.amin(0), array.amax(0)
            if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
                raise ValueError(f"cannot normalise {name!r}: it has values that are not finite")
            constant = high - low < CONSTANT_RANGE
            scale = 2 / torch.where(constant, 2.0, high - low)
            offset = torch.where(constant, -low, -1 - scale * low)
            normalizer.get_buffer(f"{name}_scale").copy_(scale)
            normalizer.get_buffer(f"{name}_offset").copy_(offset)
        return normalizer

    def normalize(self, name: str, x: Tensor) -> Tensor:
        """Raw units -> [-1, 1]. `x` is (..., *shape)."""
        return x * self.get_buffer(f"{name}_scale") + self.get_buffer(f"{name}_offset")

    def unnormalize(self, name: str, x: Tensor) -> Tensor:
        """[-1, 1] -> raw units. `x` is (..., *shape)."""
        return (x - self.get_buffer(f"{name}_offset")) / self.get_buffer(f"{name}_scale")

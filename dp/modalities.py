"""`Spec` describes an observation or action. `Normalizer` turns raw values into network inputs, and actions back."""

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
        """Reads {"type": ..., "shape": [...], "key": ..., "normalize": ...}. Raises ValueError, naming the entry."""
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
        spec = cls(kind, tuple(sizes), str(entry.get("key") or name), entry.get("normalize") or "min_max")
        if kind == "low_dim":
            check_normalization(name, spec)
        return spec


def parse_shape_meta(shape_meta: Mapping[str, Any]) -> tuple[dict[str, Spec], Spec]:
    """(observations by name, action) of {"obs": {name: entry}, "action": entry}. Raises ValueError, naming an entry."""
    if not isinstance(shape_meta, Mapping) or not isinstance(shape_meta.get("obs"), Mapping) or not shape_meta["obs"]:
        raise ValueError(f"shape_meta={shape_meta}, expected {{obs: {{name: ...}}, action: {{shape: [...]}}}}")
    if "action" in shape_meta["obs"]:
        raise ValueError(
            "shape_meta: obs.action has the name of the action, expected another one (key: says which array)"
        )
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
"""Smallest range of a channel that is scaled. Channels that vary less map to 0 (reference: `range_eps`)."""


class Normalizer(nn.Module):
    """Maps raw observations and actions to network inputs, and actions back.

    A low_dim entry is mapped linearly, channel by channel, as its `Spec.normalize` says. An rgb entry becomes floats
    in [0, 1], channels first. With min_max and mean_std a constant channel becomes 0 and comes back as the constant;
    min_max matches `LinearNormalizer(mode="limits")` of the reference implementation.

    Args:
        specs: observations by name, and "action".

    Raises:
        ValueError: for an unknown normalisation, or limits that are no limits.
    """

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        super().__init__()
        self.specs = dict(specs)
        for name, spec in self._low_dim.items():
            check_normalization(name, spec)
            self.register_buffer(f"{name}_scale", torch.ones(spec.shape))
            self.register_buffer(f"{name}_offset", torch.zeros(spec.shape))

    @property
    def _low_dim(self) -> dict[str, Spec]:
        return {name: spec for name, spec in self.specs.items() if spec.type == "low_dim"}

    @classmethod
    def fit(cls, specs: Mapping[str, Spec], arrays: Mapping[str, Tensor]) -> "Normalizer":
        """Statistics of `arrays`: name -> (N, *shape), any units. Those of rgb entries are not needed.

        Raises ValueError if a value is not finite.
        """
        normalizer = cls(specs)
        for name, spec in normalizer._low_dim.items():
            low, high = arrays[name].amin(0), arrays[name].amax(0)
            if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
                raise ValueError(f"cannot normalise {name!r}: it has values that are not finite")
            scale, offset = _linear_map(spec.normalize, arrays[name], low, high)
            normalizer.get_buffer(f"{name}_scale").copy_(scale)
            normalizer.get_buffer(f"{name}_offset").copy_(offset)
        return normalizer

    def clamps(self, name: str) -> bool:
        """Returns whether normalised values of `name` lie in [-1, 1], so that samples may be clamped."""
        return self.specs[name].normalize not in ("mean_std", "none")

    def normalize(self, name: str, x: Tensor) -> Tensor:
        """Raw -> normalised. `x` is (..., *shape), or uint8 (..., Y, X, 3) of an rgb entry."""
        if self.specs[name].type == "rgb":
            return image_to_float(x)
        return x * self.get_buffer(f"{name}_scale") + self.get_buffer(f"{name}_offset")

    def unnormalize(self, name: str, x: Tensor) -> Tensor:
        """Normalised -> raw units, of a low_dim entry. `x` is (..., *shape)."""
        return (x - self.get_buffer(f"{name}_offset")) / self.get_buffer(f"{name}_scale")


def check_normalization(name: str, spec: Spec) -> None:
    """Raises ValueError unless `spec.normalize` is one of the options of `Spec`, with limits that fit its shape."""
    option = spec.normalize
    if isinstance(option, str):
        if option not in ("min_max", "mean_std", "none"):
            raise ValueError(
                f"shape_meta: {name}.normalize={option}, expected min_max, mean_std, none or {{low: ..., high: ...}}"
            )
        return
    try:
        low, high = (torch.broadcast_to(torch.tensor(option[end]).float(), spec.shape) for end in ("low", "high"))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"shape_meta: {name}.normalize={option}, expected {{low: ..., high: ...}}, numbers or lists of shape "
            f"{list(spec.shape)} ({error})"
        ) from error
    if not (low < high).all():
        raise ValueError(f"shape_meta: {name}.normalize={option}, expected low < high")


def _linear_map(option: str | Mapping[str, Any], array: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(scale, offset) of the map x * scale + offset. `low` and `high` are the extremes of `array` (N, *shape)."""
    if option == "none":
        return torch.ones_like(low), torch.zeros_like(low)
    constant = high - low < CONSTANT_RANGE
    if option == "mean_std":
        mean, std = array.double().mean(0), array.double().std(0, correction=0)
        scale = 1 / torch.where(constant, 1.0, std)
        return scale.float(), torch.where(constant, -low.double(), -mean * scale).float()
    if isinstance(option, Mapping):
        low, high = (torch.as_tensor(option[end]).float().expand_as(low) for end in ("low", "high"))
        constant = torch.zeros_like(constant)
    # Map [low, high] to [-1, 1], and a constant channel to 0.
    scale = 2 / torch.where(constant, 2.0, high - low)
    return scale, torch.where(constant, -low, -1 - scale * low)

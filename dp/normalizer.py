"""Min-max normalisation to [-1, 1], with the statistics as buffers so that a checkpoint carries them."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

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

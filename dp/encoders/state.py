"""Low-dimensional observations as they are."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp.types import Obs


class StateEncoder(nn.Module):
    """Concatenates low-dimensional observations, in the order of `shapes` (name -> shape of one step).

    Raises ValueError for an image among them: choose an image encoder.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        if "image" in shapes:
            raise ValueError(
                "encoder=state cannot read images: use encoder=cnn or encoder=resnet18, or task=pusht_state"
            )
        self.names = list(shapes)
        self.out_dim = sum(int(torch.Size(shape).numel()) for shape in shapes.values())

    def forward(self, obs: Obs) -> Float[Tensor, "B To Do"]:
        return torch.cat([obs[name].flatten(2) for name in self.names], dim=-1)

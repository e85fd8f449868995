"""Low-dimensional observations as they are."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp.types import Obs


class StateEncoder(nn.Module):
    """Concatenates low-dimensional observations, in the order of `shapes` (name -> shape of one step).

    Args:
        shapes: observation name -> shape of one step.
        noise: standard deviation of Gaussian noise added in training, in normalised units.

    Raises ValueError for an image among them: choose an image encoder.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], noise: float = 0.0) -> None:
        super().__init__()
        if "image" in shapes:
            raise ValueError(
                "encoder=state cannot read images: use encoder=cnn or encoder=resnet18, or task=pusht_state"
            )
        self.names, self.noise = list(shapes), noise
        self.out_dim = sum(int(torch.Size(shape).numel()) for shape in shapes.values())

    def forward(self, obs: Obs) -> Float[Tensor, "B To Do"]:
        state = torch.cat([obs[name].flatten(2) for name in self.names], dim=-1)
        return state + self.noise * torch.randn_like(state) if self.training and self.noise > 0 else state

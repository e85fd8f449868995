"""Low-dimensional observations as they are."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dp.modalities import Spec
from dp.types import Obs


class StateEncoder(nn.Module):
    """Concatenates low-dimensional observations.

    Args:
        specs: observation name -> `Spec`. Features follow this order.

    Raises:
        ValueError: for an image among them.
    """

    def __init__(self, specs: Mapping[str, Spec]) -> None:
        super().__init__()
        images = [name for name, spec in specs.items() if spec.type == "rgb"]
        if images:
            raise ValueError(
                f"encoder=state cannot read images ({', '.join(images)}): use encoder=cnn or encoder=resnet18, "
                "or a task without images"
            )
        self.names = list(specs)
        self.out_dim = sum(math.prod(spec.shape) for spec in specs.values())

    def forward(self, obs: Obs) -> Float[Tensor, "B To Do"]:
        return torch.cat([obs[name].flatten(2) for name in self.names], dim=-1)

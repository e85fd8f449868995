"""The legend of shapes, and the protocols that the parts meet at.

| symbol | meaning |
|---|---|
| B  | batch size, or number of environments |
| N  | frames in a data set |
| To | `n_obs_steps`: observations the policy sees |
| H  | `horizon`: actions the policy predicts, H >= To - 1 + Ta |
| Ta | `n_action_steps`: actions it executes before it looks again |
| Da | action dimension |
| Do | `encoder.out_dim`: features of one observation step |
| C  | To * Do: the condition of the denoiser |

`k` is the diffusion step, `t` is time in control steps. Everywhere.

| timestep of a window | 0 ... To-1 | To-1 ... To-1+Ta-1 | the rest up to H-1 |
|---|---|---|---|
| observed  | yes                | only index To-1, the latest | no  |
| predicted | yes                | yes                         | yes |
| executed  | no (before To-1)   | **yes**                     | no  |
"""

from typing import Any, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Obs = dict[str, Tensor]
"""Name -> (B, To, ...). Images are uint8 (B, To, 96, 96, 3) raw and float (B, To, 3, 96, 96) in [0, 1] for encoders."""

BLOCK = 8
"""Rollouts pad their batches to a multiple of this. A network may compute a smaller batch in another way, which rounds
otherwise; in larger ones no row depends on how many there are, to the bit on a CPU (a GPU promises less)."""

Generator = torch.Generator | list[torch.Generator] | None
"""A source of noise: one for the whole batch, or one for each of its rows."""


class Batch(TypedDict):
    obs: Obs
    action: Float[Tensor, "B H Da"]


@runtime_checkable
class ObsEncoder(Protocol):
    out_dim: int

    def __call__(self, obs: Obs) -> Float[Tensor, "B To Do"]: ...


@runtime_checkable
class Denoiser(Protocol):
    def __call__(
        self, x: Float[Tensor, "B H Da"], k: Int[Tensor, " B"], cond: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B H Da"]: ...


@runtime_checkable
class Scheduler(Protocol):
    """A diffusers scheduler that samples: any of its classes whose `step` takes (prediction, k, x, generator)."""

    config: Any
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int) -> None: ...

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, generator: Generator = None) -> Any: ...


@runtime_checkable
class Policy(Protocol):
    def loss(self, batch: Batch) -> Float[Tensor, ""]: ...

    def act(self, obs: Obs, generator: Generator = None) -> Float[Tensor, "B Ta Da"]: ...

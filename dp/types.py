"""The legend of shapes, and the protocols that connect the parts.

| symbol | meaning |
|---|---|
| B  | batch size, or number of environments |
| N  | frames in a data set |
| To | `n_obs_steps`: observations the policy sees |
| H  | `horizon`: actions the policy predicts, H >= To - 1 + Ta |
| Ta | `n_action_steps`: actions it executes before it looks again |
| Da | action dimension |
| Do | `encoder.out_dim`: features of one observation step |

| timestep of a window | 0 ... To-1 | To-1 ... To-1+Ta-1 | the rest up to H-1 |
|---|---|---|---|
| observed  | yes                | only index To-1, the latest | no  |
| predicted | yes                | yes                         | yes |
| executed  | no (before To-1)   | **yes**                     | no  |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypedDict, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dp.tasks.env import Env as Env  # there, because the processes that step environments do without torch

Obs = dict[str, Tensor]
"""Name -> (B, To, ...). Images are uint8 (B, To, Y, X, 3) raw and float (B, To, 3, Y, X) in [0, 1] for encoders."""

Generator = torch.Generator | list[torch.Generator] | None
"""Source of noise: one generator for the whole batch, or one per row."""


class Batch(TypedDict):
    obs: Obs
    action: Float[Tensor, "B H Da"]


@runtime_checkable
class ObsEncoder(Protocol):
    out_dim: int

    def __call__(self, obs: Obs) -> Float[Tensor, "B To Do"]: ...


@runtime_checkable
class Denoiser(Protocol):
    """A network over a noisy action sequence. `t` holds n times of each sample: one, or two if the objective says so
    (`n_times`). `cond` keeps its observation steps apart; a network that wants them flat flattens them."""

    def __call__(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B n"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]: ...


@runtime_checkable
class Objective(Protocol):
    """Defines a denoiser's training target and how actions are sampled with it, both with the same noise schedule."""

    n_times: int
    """Number of times that the denoiser receives with every sample."""

    def loss(
        self,
        denoiser: Denoiser,
        action: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: torch.Generator | None,
    ) -> Float[Tensor, ""]: ...

    def sample(
        self,
        denoiser: Denoiser,
        noise: Float[Tensor, "B H Da"],
        cond: Float[Tensor, "B To Do"],
        generator: Generator,
    ) -> Float[Tensor, "B H Da"]: ...


@runtime_checkable
class Scheduler(Protocol):
    """A diffusers scheduler that samples."""

    config: Any
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int) -> None: ...

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, generator: Generator = None) -> Any: ...


@runtime_checkable
class Policy(Protocol):
    def loss(self, batch: Batch) -> Float[Tensor, ""]: ...

    def act(self, obs: Obs, generator: Generator = None) -> Float[Tensor, "B Ta Da"]: ...


@runtime_checkable
class Planning(Protocol):
    """A policy that shows all that it predicts, not only what it would execute."""

    n_action_steps: int

    def encode(self, obs: Obs) -> Float[Tensor, "B To Do"]:
        """What its encoder sees in raw observations."""

    def plan(
        self, cond: Float[Tensor, "B To Do"], generator: Generator = None, n: int = 1
    ) -> Float[Tensor, "B n T Da"]:
        """n samples of the actions from the latest observation on (T = H - To + 1), in raw units."""


@dataclass
class Situation:
    """One running episode as guidance sees it.

    generator: the episode's source of noise. state: the environment's true state (`Env.snapshot`) if the guidance asks
    for it. cond: the features (To, Do) that the policy's encoder computes, if the guidance does. plan: the last plan
    (T, Da), raw, of which Ta actions have been executed; None at the beginning of an episode. memory: data that the
    guidance keeps from one decision of this episode to the next.
    """

    generator: torch.Generator
    state: Mapping[str, np.ndarray] | None = None
    cond: Tensor | None = None
    plan: Float[Tensor, "T Da"] | None = None
    memory: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Critic(Protocol):
    """Compares plans for one situation."""

    def costs(self, plans: Float[np.ndarray, "n T Da"], situation: Situation) -> Float[np.ndarray, " n"]:
        """Lower is better. Plans in raw units."""


@runtime_checkable
class Guidance(Protocol):
    """Decides at test time what to execute of what a policy samples. It changes no weights.

    sees_state: whether it is privileged: it uses the environment's true state, which no robot has.
    """

    sees_state: bool

    def act(self, policy: Any, obs: Obs, situations: Sequence[Situation]) -> Float[Tensor, "B T Da"]:
        """The actions from the latest observation on, in raw units. The first Ta are executed."""

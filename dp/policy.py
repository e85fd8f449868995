"""Diffusion Policy: the whole algorithm on one screen."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from dp.kernels import sampling_loop
from dp.modalities import Normalizer
from dp.pretrained import Pretrained
from dp.types import Batch, Denoiser, Generator, Objective, Obs, ObsEncoder

Wrap = Callable[[Denoiser], Denoiser] | None


class DiffusionPolicy(Pretrained):
    """A conditional generative model of action sequences (Chi et al. 2023, section II).

    Args:
        encoder: observations -> (B, To, Do).
        denoiser: noisy actions, times, condition -> (B, H, Da).
        objective: the training target of the denoiser, and the sampler.
        normalizer: statistics of "action" and of every low-dimensional observation.
        horizon, n_obs_steps, n_action_steps: H, To, Ta.
        action_dim: Da.
        noise_draws: noisy copies trained on for each encoded observation.
    """

    def __init__(
        self,
        encoder: ObsEncoder,
        denoiser: Denoiser,
        objective: Objective,
        normalizer: Normalizer,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        action_dim: int,
        noise_draws: int = 1,
    ) -> None:
        super().__init__()
        self.encoder, self.denoiser, self.objective, self.normalizer = encoder, denoiser, objective, normalizer
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.action_dim, self.noise_draws = action_dim, noise_draws
        self.fast_denoiser: Denoiser | None = None  # an engine's, for sampling

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def condition(self, obs: Obs) -> Float[Tensor, "B To Do"]:
        """Encodes normalised observations into the condition of the denoiser."""
        return self.encoder(obs)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """The objective's loss on a normalised batch. Every encoded observation is used with `noise_draws` noises."""
        cond = self.condition(batch["obs"]).repeat_interleave(self.noise_draws, dim=0)
        action = batch["action"].repeat_interleave(self.noise_draws, dim=0)
        return self.objective.loss(self.denoiser, action, cond, generator)

    @torch.no_grad()
    def sample(
        self, cond: Float[Tensor, "B To Do"], generator: Generator = None, wrap: Wrap = None
    ) -> Float[Tensor, "B H Da"]:
        """Samples normalised actions from Gaussian noise. wrap: changes what the denoiser gets or returns."""
        noise = randn_tensor((len(cond), self.horizon, self.action_dim), generator=generator, device=cond.device)
        action = self.denoise(noise, cond, generator, wrap)
        action = action.nan_to_num(
            math.nan, math.nan, math.nan
        )  # clamping would make an infinite action a plausible one
        return action.clamp(-1, 1) if self.normalizer.clamps("action") else action

    def denoise(
        self, noise: Float[Tensor, "B H Da"], cond: Float[Tensor, "B To Do"], generator: Generator, wrap: Wrap
    ) -> Float[Tensor, "B H Da"]:
        """Turns noise into normalised actions."""
        denoiser = self.denoiser if self.fast_denoiser is None else self.fast_denoiser
        denoiser = denoiser if wrap is None else wrap(denoiser)
        # In a CUDA graph, results that `sampling_loop` keeps from the warm-up would be missing.
        with sampling_loop() if self.fast_denoiser is None else nullcontext():
            return self.objective.sample(denoiser, noise, cond, generator)

    @torch.no_grad()
    def act(self, obs: Obs, generator: Generator = None) -> Float[Tensor, "B Ta Da"]:
        """Raw observations -> the actions to execute, in raw units: the first Ta of a plan."""
        return self.plan(self.encode(obs), generator)[:, 0, : self.n_action_steps]

    @torch.no_grad()
    def encode(self, obs: Obs) -> Float[Tensor, "B To Do"]:
        """Raw observations -> the condition of the denoiser."""
        return self.condition({name: self.normalizer.normalize(name, x) for name, x in obs.items()})

    @torch.no_grad()
    def plan(
        self, cond: Float[Tensor, "B To Do"], generator: Generator = None, n: int = 1, wrap: Wrap = None
    ) -> Float[Tensor, "B n T Da"]:
        """Encoded observations -> n samples of T = H - To + 1 actions, in raw units.

        Of the H predicted actions, index To-1 belongs to the latest observation, where a plan begins.
        generator: as many as samples, those of a row next to each other.
        """
        sampled = self.sample(cond.repeat_interleave(n, dim=0), generator, wrap)
        action = self.normalizer.unnormalize("action", sampled)
        return action[:, self.n_obs_steps - 1 :].unflatten(0, (-1, n))

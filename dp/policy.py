"""Diffusion Policy: the whole algorithm on one screen."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor, nn

from dp.kernels import sampling_loop
from dp.modalities import Normalizer
from dp.types import Batch, Denoiser, Generator, Obs, ObsEncoder, Scheduler


class DiffusionPolicy(nn.Module):
    """A conditional denoising diffusion model of action sequences (Chi et al. 2023, section II).

    Args:
        encoder: observations -> (B, To, Do).
        denoiser: noisy actions, step, condition -> (B, H, Da).
        scheduler: the diffusers scheduler that samples. Training has its own object with the same noise schedule.
        normalizer: statistics of "action" and of every low-dimensional observation.
        horizon, n_obs_steps, n_action_steps: H, To, Ta.
        action_dim: Da.
        num_inference_steps: denoising steps of `act`.
        noise_draws: K, noisy copies trained on for each encoded observation.
    """

    def __init__(
        self,
        encoder: ObsEncoder,
        denoiser: Denoiser,
        scheduler: Scheduler,
        normalizer: Normalizer,
        horizon: int,
        n_obs_steps: int,
        n_action_steps: int,
        action_dim: int,
        num_inference_steps: int,
        noise_draws: int = 1,
    ) -> None:
        super().__init__()
        self.encoder, self.denoiser, self.normalizer = encoder, denoiser, normalizer
        self.scheduler, self.noise_scheduler = scheduler, _noise_scheduler(scheduler)
        self.horizon, self.n_obs_steps, self.n_action_steps = horizon, n_obs_steps, n_action_steps
        self.action_dim, self.num_inference_steps, self.noise_draws = action_dim, num_inference_steps, noise_draws

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def condition(self, obs: Obs) -> Float[Tensor, "B C"]:
        """Normalised observations -> what the denoiser is conditioned on."""
        return self.encoder(obs).flatten(1)  # (B, To * Do)

    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """Mean squared error of the denoiser at random diffusion steps (eq. 5), on a normalised batch.

        Every encoded observation is trained on with K independent noises and steps.
        """
        cond = self.condition(batch["obs"]).repeat_interleave(self.noise_draws, dim=0)  # (B * K, C)
        action = batch["action"].repeat_interleave(self.noise_draws, dim=0)  # (B * K, H, Da)
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        num_steps = self.noise_scheduler.config.num_train_timesteps
        k = torch.randint(num_steps, (len(action),), generator=generator, device=action.device)
        prediction = self.denoiser(self.noise_scheduler.add_noise(action, noise, k), k, cond)
        match self.noise_scheduler.config.prediction_type:
            case "epsilon":
                target = noise
            case "sample":
                target = action
            case "v_prediction":
                target = self.noise_scheduler.get_velocity(action, noise, k)
            case other:
                raise ValueError(f"prediction_type={other}, expected epsilon, sample or v_prediction")
        return F.mse_loss(prediction.float(), target)

    @torch.no_grad()
    def sample(self, cond: Float[Tensor, "B C"], generator: Generator = None) -> Float[Tensor, "B H Da"]:
        """Denoises Gaussian noise into normalised actions (eq. 1-4)."""
        x = randn_tensor((len(cond), self.horizon, self.action_dim), generator=generator, device=cond.device)
        x = self.denoise(x, cond, generator)
        return x.clamp(-1, 1) if self.normalizer.clamps("action") else x

    def denoise(
        self, x: Float[Tensor, "B H Da"], cond: Float[Tensor, "B C"], generator: Generator = None
    ) -> Float[Tensor, "B H Da"]:
        """All steps from noise `x` to actions. No host sync in the loop."""
        self.scheduler.set_timesteps(self.num_inference_steps)  # on the CPU: Python ints below, not device tensors
        with sampling_loop():
            for k in self.scheduler.timesteps.tolist():
                prediction = self.denoiser(x, torch.full((len(x),), k, device=cond.device), cond)
                x = self.scheduler.step(prediction, k, x, generator=generator).prev_sample
        return x

    @torch.no_grad()
    def act(self, obs: Obs, generator: Generator = None) -> Float[Tensor, "B Ta Da"]:
        """Raw observations -> the actions to execute, in raw units.

        Of the H predicted actions, index To-1 belongs to the latest observation; Ta are executed from there.
        """
        normalized = {name: self.normalizer.normalize(name, x) for name, x in obs.items()}
        action = self.normalizer.unnormalize("action", self.sample(self.condition(normalized), generator))
        start = self.n_obs_steps - 1
        return action[:, start : start + self.n_action_steps]


def _noise_scheduler(scheduler: Scheduler) -> Any:
    """With the same noise schedule. `from_config` would import every scheduler there is, and scipy.stats with them."""
    taken = inspect.signature(DDPMScheduler).parameters
    return DDPMScheduler(**{name: value for name, value in scheduler.config.items() if name in taken})

"""An encoder for both cameras, a flow-matching objective, a scheduler with a noise schedule of its own."""

from collections.abc import Mapping

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from dp.modalities import Spec


class Twin(nn.Module):
    def __init__(self, specs: Mapping[str, Spec], features: int) -> None:
        super().__init__()
        self.cameras = [name for name, spec in specs.items() if spec.type == "rgb"]
        self.vectors = [name for name, spec in specs.items() if spec.type == "low_dim"]
        self.eyes = nn.ModuleDict({name: nn.Conv2d(3, features, 8, stride=8) for name in self.cameras})
        self.out_dim = features * len(self.cameras) + sum(specs[name].shape[0] for name in self.vectors)

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        seen = [
            self.eyes[name](obs[name].flatten(0, 1)).mean((2, 3)).unflatten(0, obs[name].shape[:2])
            for name in self.cameras
        ]
        return torch.cat([*seen, *(obs[name] for name in self.vectors)], dim=-1)


class Flow(nn.Module):
    """Rectified flow (Liu et al. 2022)."""

    n_times = 1

    def __init__(self, num_inference_steps: int, time_scale: float) -> None:
        super().__init__()
        self.num_inference_steps, self.time_scale = num_inference_steps, time_scale

    def loss(self, denoiser, action, cond, generator):
        noise = torch.randn(action.shape, generator=generator, device=action.device)
        t = torch.rand(len(action), 1, 1, generator=generator, device=action.device)
        velocity = denoiser(t * action + (1 - t) * noise, self.time_scale * t.flatten(1), cond)
        return nn.functional.mse_loss(velocity.float(), action - noise)

    def sample(self, denoiser, noise, cond, generator):
        x, dt = noise, 1 / self.num_inference_steps
        for step in range(self.num_inference_steps):
            x = x + dt * denoiser(x, torch.full((len(x), 1), self.time_scale * step * dt, device=x.device), cond)
        return x


class Gentle(DDIMScheduler):
    """With half of the noise that its configuration says."""

    def __init__(self, num_train_timesteps: int = 100, prediction_type: str = "epsilon", **kwargs) -> None:
        super().__init__(num_train_timesteps=num_train_timesteps, prediction_type=prediction_type)
        self.betas = self.betas / 2
        self.alphas = 1 - self.betas
        self.alphas_cumprod = torch.cumprod(self.alphas, 0)

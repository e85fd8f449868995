"""What a denoiser is trained to predict, and how actions are sampled with it. One file each."""

from dp.objectives.diffusion import Diffusion

__all__ = ["Diffusion"]

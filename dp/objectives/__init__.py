"""Training targets of a denoiser, each with its sampler. One file per objective."""

from dp.objectives.diffusion import Diffusion

__all__ = ["Diffusion"]

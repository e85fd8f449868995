"""Training targets of a denoiser, each with its sampler. One file per objective."""

from dp.objectives.consistency import Consistency
from dp.objectives.diffusion import Diffusion
from dp.objectives.distillation import Distillation
from dp.objectives.edm import EDM
from dp.objectives.flow import Flow
from dp.objectives.meanflow import MeanFlow
from dp.objectives.regression import MinimalIterative, Regression
from dp.objectives.shortcut import Shortcut

__all__ = [
    "EDM",
    "Consistency",
    "Diffusion",
    "Distillation",
    "Flow",
    "MeanFlow",
    "MinimalIterative",
    "Regression",
    "Shortcut",
]

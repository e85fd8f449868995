"""What a policy's samples become at test time: chosen, averaged, or executed as they are. No training."""

from dp.guidance.best_of_n import BestOfN
from dp.guidance.coherence import Coherence
from dp.guidance.ensemble import Ensemble
from dp.guidance.inpainting import Inpainting
from dp.guidance.practice import Decision, Practice
from dp.guidance.unguided import Unguided
from dp.guidance.value import Value, ValueNetwork, view_of
from dp.guidance.warm_start import WarmStart

__all__ = [
    "BestOfN",
    "Coherence",
    "Decision",
    "Ensemble",
    "Inpainting",
    "Practice",
    "Unguided",
    "Value",
    "ValueNetwork",
    "WarmStart",
    "view_of",
]

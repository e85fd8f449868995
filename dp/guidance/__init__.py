"""What a policy's samples become at test time: chosen, averaged, or executed as they are. No training."""

from dp.guidance.best_of_n import BestOfN
from dp.guidance.coherence import Coherence
from dp.guidance.ensemble import Ensemble
from dp.guidance.unguided import Unguided

__all__ = ["BestOfN", "Coherence", "Ensemble", "Unguided"]

"""95 % confidence intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z_95 = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], n_resamples: int = 10_000) -> Estimate:
    """Mean, with the percentile bootstrap interval (Efron & Tibshirani 1993, section 13.3). Not random."""
    array = np.asarray(values, float)
    draws = np.random.default_rng(0).integers(len(array), size=(n_resamples, len(array)))
    low, high = np.quantile(array[draws].mean(1), [0.025, 0.975])
    return Estimate(float(array.mean()), float(low), float(high))


def wilson(successes: int, n: int) -> Estimate:
    """Share with Wilson's score interval (Wilson 1927, eq. 1): holds its level near 0 and 1 and for small n."""
    share = successes / n
    centre = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 / (1 + Z_95**2 / n) * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half))

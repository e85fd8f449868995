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


class Difference(NamedTuple):
    """How much better one is than another, with its 95 % interval and the probability of being better at all."""

    value: float
    low: float
    high: float
    p_better: float


def crossed_mean(scores: np.ndarray, n_resamples: int = 2_000) -> Estimate:
    """Mean of scores (S, E), S training seeds on the same E episodes; the bootstrap draws from both. Not random."""
    draws = _crossed_draws(np.asarray(scores, float), np.random.default_rng(0), n_resamples)
    return Estimate(float(np.mean(scores)), *(float(q) for q in np.quantile(draws, [0.025, 0.975])))


def paired_difference(a: np.ndarray, b: np.ndarray, n_resamples: int = 2_000) -> Difference:
    """Mean of `a` (Sa, E) less that of `b` (Sb, E), on the same E episodes. Not random."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    draws = _crossed_draws(a, np.random.default_rng(0), n_resamples)
    draws = draws - _crossed_draws(b, np.random.default_rng(0), n_resamples)  # the same episodes in each draw
    low, high = np.quantile(draws, [0.025, 0.975])
    better = float(np.mean(draws > 0) + np.mean(draws == 0) / 2)
    return Difference(float(a.mean() - b.mean()), float(low), float(high), better)


def _crossed_draws(scores: np.ndarray, rng: np.random.Generator, n: int) -> np.ndarray:
    seeds, episodes = scores.shape
    weights = rng.multinomial(episodes, np.full(episodes, 1 / episodes), size=n) / episodes  # (n, E)
    return ((rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=n) / seeds) @ scores * weights).sum(1)

"""95 % confidence intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Z_95 = 1.959963984540054
"""0.975 quantile of the standard normal distribution."""


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """How much better one recipe is than another: 95 % interval, and the probability that it is better at all."""

    value: float
    low: float
    high: float
    p_better: float


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


def crossed_mean(scores: Float[np.ndarray, "S E"]) -> Estimate:
    """Mean of S training seeds on the same E environment seeds, with a 95 % t interval for all the seeds there are.

    Two-way random effects (Searle, Casella & McCulloch 1992, chapter 4). The interval is not clipped to [0, 1].

    S = 1 leaves the t interval over episodes: it speaks of this one checkpoint and says nothing about what another
    training seed would score, so as an interval for the recipe it is too narrow wherever training seeds differ.
    E = 1 likewise leaves the interval over training seeds, in this one episode. A single score bounds nothing:
    [-inf, inf]. With S = 2 and training seeds that differ much, 95 % are nearer 90 (docs/results.md).

    Raises:
        ValueError: there are no scores.
    """
    _check_not_empty(scores)
    variance, df = _variance_of_mean(scores.mean(0), [scores])
    return _t_interval(float(scores.mean()), variance, df)


def paired_difference(a: Float[np.ndarray, "Sa E"], b: Float[np.ndarray, "Sb _E"]) -> Difference:
    """Mean of `a` minus mean of `b`: training seeds are independent, the E environment seeds (columns) are shared.

    The interval is for all the training and environment seeds there are. Of two recipes with several training seeds
    each has its own spread; one with a single training seed borrows the other's, and where its own is larger the
    interval is too narrow. Sa = Sb = 1 leaves the paired t interval over episodes: it compares two checkpoints, says
    nothing about what other training seeds would score, and `p_better` is as overconfident.

    `p_better` is the posterior probability that a's true mean is the higher one under a flat prior (the t
    distribution's CDF at difference / standard error), and 0.5 where nothing is known.

    Raises:
        ValueError: there are no scores, or the two were not made on as many environment seeds.
    """
    _check_not_empty(a)
    _check_not_empty(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"got scores on {a.shape[1]} and on {b.shape[1]} environment seeds, expected the same seeds: "
            "keep the columns that both have"
        )
    columns = a.mean(0) - b.mean(0)
    variance, df = _variance_of_mean(columns, [a, b])
    estimate = _t_interval(float(columns.mean()), variance, df)
    return Difference(*estimate, _p_positive(estimate.value, variance, df))


def _check_not_empty(scores: Float[np.ndarray, "S E"]) -> None:
    if scores.size == 0:
        raise ValueError(f"got scores of shape {scores.shape}, expected (training seeds, environment seeds), none zero")


def _variance_of_mean(columns: Float[np.ndarray, "E"], tables: list[np.ndarray]) -> tuple[float, float]:
    """Variance of `columns.mean()`, and its degrees of freedom; (inf, 0) where a single score leaves it unknown.

    `columns` are the means over training seeds of the one table, or the differences between those of two. In mean
    squares it is (MS_seed + MS_env - MS_residual) / SE: the residual is in both of the others. Neither is let below it,
    since no variance component is negative. Degrees of freedom: Satterthwaite (1946), but at least the fewest that
    went in, which the subtraction could undercut.
    """
    n_env = len(columns)
    single = sum(len(table) == 1 for table in tables)
    terms = [_seed_terms(table, 1 / len(table) + single) for table in tables if len(table) > 1]  # `single` borrow it
    residual = sum(r for _, r, _ in terms)
    variance = sum(max(seed - r, 0.0) for seed, r, _ in terms)
    squares = [(seed, df) for seed, _, df in terms]
    if n_env > 1:
        env = columns.var(ddof=1) / n_env
        variance += max(env, residual)
        squares += [(env, n_env - 1), *((r, df * (n_env - 1)) for _, r, df in terms)]
    if not squares:
        return math.inf, 0.0
    spread = sum(square**2 / df for square, df in squares)
    return float(variance), float(max(variance**2 / spread if spread > 0 else 0, min(df for _, df in squares)))


def _seed_terms(table: Float[np.ndarray, "S E"], share: float) -> tuple[float, float, int]:
    """`share` of the variance between the S means, of the part in it that is residual, and degrees of freedom."""
    n_seeds, n_env = table.shape
    rows = table.mean(1, keepdims=True) - table.mean()
    residual = ((table - table.mean(0) - rows) ** 2).sum() / max(n_env - 1, 1) / n_env  # 0 where E = 1
    return share * (rows**2).sum() / (n_seeds - 1), share * residual / (n_seeds - 1), n_seeds - 1


def _t_interval(value: float, variance: float, df: float) -> Estimate:
    from scipy.special import stdtrit  # here, because only reports need it and it takes a while

    half = math.sqrt(variance) * float(stdtrit(df, 0.975)) if variance < math.inf else math.inf
    return Estimate(value, value - half, value + half)


def _p_positive(value: float, variance: float, df: float) -> float:
    """Probability that Student's t is below value / sqrt(variance)."""
    from scipy.special import stdtr

    if value == 0 or variance == math.inf:
        return 0.5
    return float(stdtr(df, value / math.sqrt(variance))) if variance > 0 else float(value > 0)

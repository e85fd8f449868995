"""95 % confidence intervals. docs/method.md says which is used when, and how often each holds the truth."""

import math
from collections.abc import Sequence
from typing import NamedTuple, SupportsFloat, SupportsInt

import numpy as np
from jaxtyping import Float, Real

Bounds = tuple[float, float]
"""The least and the greatest value that a quantity can have."""

N_DRAWS, BLOCK = 10_000, 500
"""Draws of a posterior, and how many of them are in memory at once."""

NO_VARIANCE = 1e-12
"""Variance below which all episodes count as equal."""


class Estimate(NamedTuple):
    """A value with its 95 % interval. `low` and `high` are nan if nothing is known: for a single episode."""

    value: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether there is an interval."""
        return not (math.isnan(self.low) or math.isnan(self.high))


UNKNOWN = Estimate(math.nan, math.nan, math.nan)
"""Estimate of an undefined quantity."""


class Difference(NamedTuple):
    """Difference between two recipes with its 95 % interval, and the probability that the first is better."""

    value: float
    low: float
    high: float
    p_better: float


def mean(values: Sequence[SupportsFloat] | Real[np.ndarray, " E"], bounds: Bounds | None = None) -> Estimate:
    """Mean over episodes. Not random, and independent of the order of `values`.

    With `bounds`, the interval is Rubin's (1981) Bayesian bootstrap with half an episode added at each bound. For 0s
    and 1s it is Jeffreys' interval (Brown, Cai & DasGupta 2001, section 4.3). It never leaves the bounds, and it has a
    width even if all episodes agree. Without bounds, or if `values` violate them, it is Student's t interval. A
    single episode has no interval; the mean of no episodes is unknown.
    """
    array = np.sort(np.asarray(values, float))
    if not len(array):
        return UNKNOWN
    value, n = float(array.mean()), len(array)
    if n < 2 or not np.isfinite(array).all():
        return Estimate(value, math.nan, math.nan)
    if bounds is None or array[0] < bounds[0] or array[-1] > bounds[1]:
        return _t_interval(value, float(array.var(ddof=1)) / n, float(n - 1))
    low, high = np.quantile(_posterior_means(array, bounds), [0.025, 0.975])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _posterior_means(values: Float[np.ndarray, " E"], bounds: Bounds) -> Float[np.ndarray, " draws"]:
    """Means of `values` and `bounds` under Dirichlet(1, ..., 1, 1/2, 1/2) weights, in blocks that fit a cache."""
    rng, means = np.random.default_rng(0), []
    for _ in range(N_DRAWS // BLOCK):
        # Dirichlet weights are independent gamma variables divided by their sum.
        episodes = rng.standard_exponential((BLOCK, len(values)))
        ends = rng.standard_gamma(0.5, (BLOCK, 2))
        means.append((episodes @ values + ends @ np.array(bounds)) / (episodes.sum(1) + ends.sum(1)))
    return np.concatenate(means)


def proportion(successes: SupportsInt, n: int) -> Estimate:
    """Share of n episodes that succeed, with Wilson's (1927) score interval; unknown for no episodes."""
    successes = int(successes)
    if n < 2:
        return Estimate(successes / n, math.nan, math.nan) if n else UNKNOWN
    from scipy.stats import binomtest  # here, because it takes a while

    low, high = binomtest(successes, n).proportion_ci(method="wilson")
    return Estimate(successes / n, float(low), float(high))


def crossed_mean(scores: Real[np.ndarray, "S E"], bounds: Bounds | None = None) -> Estimate:
    """Mean of S training seeds on the same E environment seeds, with a 95 % interval for the population of all seeds.

    Two-way random effects (Searle, Casella & McCulloch 1992, chapter 4). With `bounds`, the variance shrinks towards
    them as that of a share does, so the interval stays inside (see `_score_interval`).

    S = 1 is `mean`: it speaks of this one checkpoint and says nothing about what another training seed would score, so
    as an interval for the recipe it is too narrow wherever training seeds differ. E = 1 is the interval over training
    seeds in this one episode. A single score has no interval. With S = 2 and training seeds that differ much, 95 % are
    nearer 90 (docs/results.md).

    Raises:
        ValueError: there are no scores.
    """
    _check_not_empty(scores)
    if 1 in scores.shape:
        return mean(scores.ravel(), bounds)
    if bounds is not None and (scores.min() < bounds[0] or scores.max() > bounds[1]):
        bounds = None
    value = float(scores.mean())
    variance, df = _variance_of_mean(scores.mean(0), [scores])
    if bounds is None:
        return _t_interval(value, variance, df)
    if variance < NO_VARIANCE:  # the seeds agree: what is left are the episodes
        return mean(scores.mean(0), bounds)
    return _score_interval(value, variance, df, bounds)


def paired_difference(
    a: Real[np.ndarray, "Sa E"], b: Real[np.ndarray, "Sb _E"], bounds: Bounds | None = None
) -> Difference:
    """Mean of `a` minus mean of `b`: training seeds are independent, the E environment seeds (columns) are shared.

    The interval is for all the training and environment seeds there are. Of two recipes with several training seeds
    each has its own spread; one with a single training seed borrows the other's, and if its own is larger, the interval
    is too narrow. Sa = Sb = 1 leaves the paired t interval over episodes: it compares two checkpoints, says nothing
    about what other training seeds would score, and `p_better` is as overconfident.

    `p_better` is the posterior probability that a's true mean is the higher one under a flat prior (the t
    distribution's CDF at difference / standard error), and 0.5 if nothing is known. `bounds` of the scores cut off
    impossible differences, and give the interval a width if all episodes agree.

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
    value, low, high = _t_interval(float(columns.mean()), variance, df)
    if bounds is not None:
        # A difference of bounded scores is at most as large as the range.
        most = max(bounds[1] - bounds[0], float(abs(columns).max()))
        if variance < NO_VARIANCE:
            value, low, high = mean(columns, (-most, most))
        low, high = np.clip((low, high), -most, most).tolist()
    return Difference(value, low, high, _p_positive(value, variance, df))


def _check_not_empty(scores: Real[np.ndarray, "S E"]) -> None:
    if scores.size == 0:
        raise ValueError(f"got scores of shape {scores.shape}, expected (training seeds, environment seeds), none zero")


def _variance_of_mean(columns: Float[np.ndarray, "E"], tables: list[np.ndarray]) -> tuple[float, float]:
    """Variance of `columns.mean()`, and its degrees of freedom; (inf, 0) if a single score leaves it unknown.

    `columns` are the means over training seeds of the one table, or the differences between those of two. In mean
    squares it is (MS_seed + MS_env - MS_residual) / SE: the residual is in both of the others. Neither may fall below
    it, since no variance component is negative. Degrees of freedom: Satterthwaite (1946), but at least the fewest that
    went in, which the subtraction could undercut.
    """
    n_env = len(columns)
    single = sum(len(table) == 1 for table in tables)
    terms = [_seed_terms(table, 1 / len(table) + single) for table in tables if len(table) > 1]  # `single` borrow it
    residual = sum(r for _, r, _ in terms)
    # Add the mean squares of seeds without their residual part, then those of environments.
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


def _seed_terms(table: Real[np.ndarray, "S E"], share: float) -> tuple[float, float, int]:
    """`share` of the variance between the S means and of its residual part, and degrees of freedom."""
    n_seeds, n_env = table.shape
    # Mean squares of the two-way layout: rows are seeds, the residual is their interaction.
    rows = table.mean(1, keepdims=True) - table.mean()
    residual = ((table - table.mean(0) - rows) ** 2).sum() / max(n_env - 1, 1) / n_env  # 0 where E = 1
    return share * (rows**2).sum() / (n_seeds - 1), share * residual / (n_seeds - 1), n_seeds - 1


def _t_interval(value: float, variance: float, df: float) -> Estimate:
    from scipy.special import stdtrit  # here, because only reports need it and it takes a while

    if variance == math.inf:
        return Estimate(value, math.nan, math.nan)
    half = math.sqrt(variance) * float(stdtrit(df, 0.975))
    return Estimate(value, value - half, value + half)


def _score_interval(value: float, variance: float, df: float, bounds: Bounds) -> Estimate:
    """The means m for which `value` is within t standard errors, if the variance is proportional to m (1 - m).

    Wilson's interval has that form: here n is the number of 0s and 1s whose mean would vary as much.
    """
    from scipy.special import stdtrit

    low, width = bounds[0], bounds[1] - bounds[0]
    m, t = (value - low) / width, float(stdtrit(df, 0.975))
    # Wilson's formula for a share m of n trials, in units of the bounds.
    n = m * (1 - m) * width**2 / variance
    centre = (m + t**2 / (2 * n)) / (1 + t**2 / n)
    half = t / (1 + t**2 / n) * math.sqrt(m * (1 - m) / n + t**2 / (4 * n**2))
    return Estimate(value, low + width * max(0.0, centre - half), low + width * min(1.0, centre + half))


def _p_positive(value: float, variance: float, df: float) -> float:
    """Probability that Student's t is below value / sqrt(variance)."""
    from scipy.special import stdtr

    if value == 0 or variance == math.inf:
        return 0.5
    return float(stdtr(df, value / math.sqrt(variance))) if variance > 0 else float(value > 0)

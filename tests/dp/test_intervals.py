"""`python -m tests.dp.test_intervals` prints the tables of docs/studies/2026-11-intervals.md."""

import math
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scipy.special import betaincinv

from dp import intervals
from dp.intervals import Bounds, crossed_mean, paired_difference, proportion

SCORES: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of a standard normal variable
    "Gaussian": lambda z: z,
    "PushT": lambda z: np.interp(z, [-2.5, -1.3, -0.5, 0.0], [0.0, 0.4, 0.9, 1.0]),  # half of them 1, a tenth below 0.4
    "near 1": lambda z: np.interp(z, [-3, -2.0, -1.3, -0.2], [0.05, 0.5, 0.93, 1.0]),  # a trained policy, 0.96
    "near 0": lambda z: np.interp(z, [0.3, 1, 2, 3], [0, 0.15, 0.5, 0.95]),  # an untrained one, 0.07
    "success 50 %": lambda z: (z > 0).astype(float),
    "success 95 %": lambda z: (z > -1.6449).astype(float),
}


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (0, 50, 0.0, 0.0714), (50, 50, 0.9286, 1.0), (2, 2, 0.3424, 1.0)],
)
def test_wilson_at_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert proportion(successes, n) == pytest.approx((successes / n, low, high), abs=1e-4)


UNIT = (0.0, 1.0)


def test_a_single_episode_has_no_interval() -> None:
    for estimate in (
        intervals.mean([0.3], UNIT),
        intervals.mean([0.3]),
        proportion(1, 1),
        crossed_mean(np.array([[0.3]])),
    ):
        assert not estimate.bounded
    assert math.isnan(proportion(0, 0).value)


@pytest.mark.parametrize("kind", [list, np.array, lambda values: [np.float32(v) for v in values]])
def test_whole_numbers_are_numbers(kind: Callable[[list], list]) -> None:
    """Lengths are whole, and so are the rewards of some environments."""
    assert intervals.mean(kind([9, 9, 12])) == intervals.mean([9.0, 9.0, 12.0])
    table = np.array([[3, 1, 2], [2, 1, 0]])
    assert crossed_mean(table) == crossed_mean(table.astype(float))
    assert paired_difference(table, table[:, ::-1]) == paired_difference(table.astype(float), table[:, ::-1] * 1.0)
    assert proportion(np.int64(3), 4) == proportion(3, 4)


def test_the_mean_of_no_episodes_is_unknown() -> None:
    assert all(map(math.isnan, intervals.mean([])))


def test_an_interval_of_0s_and_1s_is_jeffreys() -> None:
    found = intervals.mean([1.0] * 7 + [0.0] * 3, UNIT)
    assert found == pytest.approx((0.7, *betaincinv(7.5, 3.5, [0.025, 0.975])), abs=0.005)


@pytest.mark.parametrize("values", [[0.0] * 3, [1.0] * 50, [0.98, 1.0, 1.0], [0.0, 1.0]])
def test_an_interval_stays_within_the_bounds_holds_the_mean_and_has_a_width(values: list[float]) -> None:
    value, low, high = intervals.mean(values, UNIT)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.01
    scaled = intervals.mean([10 * v - 5 for v in values], (-5.0, 5.0))
    assert scaled == pytest.approx((10 * value - 5, 10 * low - 5, 10 * high - 5), abs=1e-9)


def test_a_mean_depends_on_neither_chance_nor_order() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    assert intervals.mean(values, UNIT) == intervals.mean(values[::-1], UNIT)
    assert intervals.mean(values, UNIT) == crossed_mean(values[None], UNIT)  # console and page say the same


def test_values_beyond_the_bounds_have_students_interval() -> None:
    values = np.array([0.5, 1.5, 0.9])
    assert intervals.mean(values, UNIT) == intervals.mean(values)


@pytest.mark.parametrize("kind", ["PushT", "near 1", "near 0"])
@pytest.mark.parametrize("n", [3, 10])
def test_the_interval_of_a_bounded_mean_holds_for_few_episodes(
    kind: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intervals, "N_DRAWS", 1000)
    assert mean_coverage(kind, n, UNIT, 200) >= 0.91


def mean_coverage(kind: str, n: int, bounds: Bounds | None, n_simulations: int) -> float:
    """How often the 95 % interval of the mean of n episodes holds the truth."""
    samples = SCORES[kind](np.random.default_rng(0).normal(size=(n_simulations, n)))
    estimates = [intervals.mean(sample, bounds) for sample in samples]
    truth = true_mean(kind)
    return float(np.mean([e.low - 1e-9 <= truth <= e.high + 1e-9 for e in estimates]))


@pytest.mark.parametrize("seeds", [[2], [3]])
def test_a_crossed_interval_stays_within_the_bounds_and_holds(seeds: list[int]) -> None:
    tables = (draw(np.random.default_rng(i), "near 1", seeds, 5, [0.02])[0] for i in range(200))
    estimates = [crossed_mean(table, UNIT) for table in tables]
    assert all(0 <= e.low <= e.value <= e.high <= 1 for e in estimates)
    truth = true_mean("near 1")
    assert np.mean([e.low <= truth <= e.high for e in estimates]) > 0.85


def test_a_difference_of_bounded_scores_stays_possible_and_has_a_width() -> None:
    far = paired_difference(np.array([[1.0, 0.0]]), np.array([[0.0, 0.9]]), UNIT)
    assert -1 <= far.low < far.high <= 1
    same = paired_difference(np.zeros((1, 5)), np.zeros((1, 5)), UNIT)
    assert same.low < -0.05 < 0.05 < same.high


def true_mean(kind: str) -> float:
    z = np.linspace(-9, 9, 100_001)
    return float(np.average(SCORES[kind](z), weights=np.exp(-(z**2) / 2)))


def draw(rng: np.random.Generator, kind: str, seeds: list[int], n_env: int, shares: list[float]) -> list[np.ndarray]:
    """A table of scores for each entry of `seeds`; `shares` of their variance is between training seeds."""
    env = math.sqrt(0.3) * rng.normal(size=n_env)  # the same for every table
    tables = []
    for n_seeds, share in zip(seeds, shares, strict=True):
        own = math.sqrt(0.1) * rng.normal(size=n_env) + math.sqrt(share) * rng.normal(size=(n_seeds, 1))
        tables.append(SCORES[kind](env + own + math.sqrt(0.6 - share) * rng.normal(size=(n_seeds, n_env))))
    return tables


def coverage(kind: str, seeds: list[int], n_env: int, shares: list[float], n_simulations: int) -> float:
    """How often the 95 % interval of a mean (one entry in `seeds`) or of a difference (two entries) holds the truth."""
    rng = np.random.default_rng(0)
    tables = (draw(rng, kind, seeds, n_env, shares) for _ in range(n_simulations))
    if len(seeds) == 1:
        truth, estimates = true_mean(kind), (crossed_mean(*table) for table in tables)
        return float(np.mean([e.low <= truth <= e.high for e in estimates]))
    return float(np.mean([d.low <= 0 <= d.high for d in (paired_difference(*pair) for pair in tables)]))


@pytest.mark.parametrize(
    ("seeds", "share", "low", "high"),
    [
        ([1], 0.0, 0.93, 0.97),
        ([2], 0.0, 0.93, 0.985),
        ([3], 0.0, 0.93, 0.985),
        ([3], 0.02, 0.92, 0.97),
        ([3], 0.5, 0.90, 0.97),
        ([5], 0.02, 0.93, 0.97),
        ([5], 0.5, 0.93, 0.97),
        ([1], 0.5, 0.0, 0.4),  # one training seed says nothing about the others: if this holds, it was no such case
        ([1, 1], 0.0, 0.93, 0.97),
        ([3, 3], 0.0, 0.94, 0.99),
        ([3, 3], 0.5, 0.93, 0.985),
        ([5, 5], 0.02, 0.93, 0.98),
        ([5, 1], 0.5, 0.91, 0.97),
        ([1, 5], 0.5, 0.91, 0.97),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: list[int], share: float, low: float, high: float) -> None:
    assert low < coverage("Gaussian", seeds, 50, [share] * len(seeds), 400) < high


def test_each_recipe_has_its_own_spread_between_training_seeds() -> None:
    assert coverage("Gaussian", [5, 2], 50, [0.5, 0.0], 400) < 0.975  # one spread for both would give more ...
    assert coverage("Gaussian", [5, 2], 50, [0.0, 0.5], 400) > 0.86  # ... and less than this


@pytest.mark.parametrize("kind", ["PushT", "success 50 %"])
def test_intervals_hold_for_scores_that_are_far_from_normal(kind: str) -> None:
    assert 0.92 < coverage(kind, [3], 50, [0.02], 400) < 0.98
    assert 0.93 < coverage(kind, [3, 3], 50, [0.02, 0.02], 400) < 0.99


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_difference_is_unbiased(share: float) -> None:
    rng = np.random.default_rng(3)
    pairs = (draw(rng, "PushT", [3, 3], 50, [share, share]) for _ in range(500))
    found = np.array([paired_difference(a + 0.05, b) for a, b in pairs])
    assert found[:, 0].mean() == pytest.approx(0.05, abs=3 * found[:, 0].std() / math.sqrt(500))
    assert found[:, 3].mean() > 0.55


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_p_better_is_uniform_where_nothing_is_better(share: float) -> None:
    rng = np.random.default_rng(4)
    p = [paired_difference(*draw(rng, "PushT", [3, 3], 50, [share, share])).p_better for _ in range(500)]
    assert np.quantile(p, [0.1, 0.25, 0.5, 0.75, 0.9]) == pytest.approx([0.1, 0.25, 0.5, 0.75, 0.9], abs=0.06)


def test_one_training_seed_leaves_students_t_over_episodes() -> None:
    scores = np.arange(10.0)
    half = 2.262157163 * scores.std(ddof=1) / math.sqrt(10)  # t, 9 degrees of freedom
    assert crossed_mean(scores[None]) == pytest.approx((4.5, 4.5 - half, 4.5 + half))
    assert crossed_mean(scores[:, None]) == pytest.approx((4.5, 4.5 - half, 4.5 + half))  # and one episode, over seeds
    shift = np.full((1, 10), 7.0)
    assert paired_difference(scores[None], shift)[:3] == pytest.approx((-2.5, -2.5 - half, -2.5 + half))


def test_variance_between_training_seeds_is_as_in_an_analysis_of_variance() -> None:
    scores = np.array([[1.0, 2.0, 4.0], [2.0, 4.0, 5.0]])
    ms_seed, ms_env, ms_residual = 8 / 3, 4.5, 1 / 6
    variance = (ms_seed + ms_env - ms_residual) / 6
    df = variance**2 * 36 / (ms_seed**2 / 1 + ms_env**2 / 2 + ms_residual**2 / 2)
    mean, low, high = crossed_mean(scores)
    assert mean == 3.0
    assert df == pytest.approx(2.84, abs=0.01)
    assert (high - mean) / math.sqrt(variance) == pytest.approx(3.286, abs=0.01)
    assert mean - low == pytest.approx(high - mean)


@pytest.mark.parametrize(("df", "t"), [(1, 12.70620474), (2, 4.30265273), (9, 2.26215716), (99, 1.98421695)])
def test_t_quantiles_at_known_values(df: int, t: float) -> None:
    scores = np.random.default_rng(0).normal(size=(1, df + 1))
    value, low, _ = crossed_mean(scores)
    assert (value - low) / (scores.std(ddof=1) / math.sqrt(df + 1)) == pytest.approx(t, rel=1e-8)


def test_p_better_at_known_values() -> None:
    assert paired_difference(np.array([[0.0, 2.0]]), np.zeros((1, 2))).p_better == pytest.approx(0.75)  # t = 1, df = 1
    ten = np.arange(10.0)[None]
    assert paired_difference(ten - 4.5 + 2.262157163 * ten.std(ddof=1) / math.sqrt(10), 0 * ten).p_better == (
        pytest.approx(0.975)
    )


def test_a_difference_is_mirrored_when_the_recipes_change_places() -> None:
    a, b = draw(np.random.default_rng(0), "PushT", [3, 2], 50, [0.1, 0.1])
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert (back.value, back.low, back.high, back.p_better) == pytest.approx(
        (-there.value, -there.high, -there.low, 1 - there.p_better)
    )


def test_shared_environment_seeds_cancel_from_a_difference() -> None:
    a, b = draw(np.random.default_rng(0), "Gaussian", [3, 3], 50, [0.0, 0.0])
    hard = 10 * np.random.default_rng(1).normal(size=50)
    assert paired_difference(a + hard, b + hard) == pytest.approx(paired_difference(a, b))


@pytest.mark.parametrize("n_seeds", [1, 2, 3])
def test_what_does_not_vary_has_no_width(n_seeds: int) -> None:
    constant = np.full((n_seeds, 7), 0.1)
    assert crossed_mean(constant) == pytest.approx((0.1, 0.1, 0.1))
    assert paired_difference(constant, constant) == pytest.approx((0, 0, 0, 0.5))
    assert paired_difference(constant + 1, constant) == pytest.approx((1, 1, 1, 1))
    assert paired_difference(constant, constant + 1) == pytest.approx((-1, -1, -1, 0), abs=1e-6)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_recipe_is_no_better_than_itself(n_seeds: int) -> None:
    scores = np.random.default_rng(0).uniform(size=(n_seeds, 20))
    found = paired_difference(scores, scores)
    assert (found.value, found.p_better) == (0, 0.5)
    assert found.low == -found.high


def test_a_single_score_bounds_nothing() -> None:
    one = np.array([[0.5]])
    assert not crossed_mean(one).bounded
    difference = paired_difference(one, one / 2)
    assert (difference.value, difference.p_better) == (0.25, 0.5)
    assert math.isnan(difference.low)
    assert math.isnan(difference.high)


def test_scores_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and on 4 environment seeds"):
        paired_difference(np.zeros((2, 3)), np.zeros((2, 4)))
    for empty in (np.zeros((0, 3)), np.zeros((2, 0))):
        with pytest.raises(ValueError, match="expected"):
            crossed_mean(empty)
        with pytest.raises(ValueError, match="expected"):
            paired_difference(empty, empty)


def table(cases: list[list[int]], shares: list[list[float]], n_simulations: int) -> Iterator[str]:
    """Markdown: coverage in % with 50 / 500 environment seeds; a column for each of `cases`."""
    yield "| scores | share of training seeds | " + " | ".join(" and ".join(map(str, case)) for case in cases) + " |\n"
    yield "|---" * (2 + len(cases)) + "|\n"
    for kind in SCORES:
        for share in shares:
            cells = [[100 * coverage(kind, case, n, share, n_simulations) for n in (50, 500)] for case in cases]
            label = " and ".join(f"{100 * s:g} %" for s in dict.fromkeys(share))
            yield f"| {kind} | {label} | " + " | ".join(f"{few:.1f} / {many:.1f}" for few, many in cells) + " |\n"


def bounded_table(n_simulations: int) -> Iterator[str]:
    """Markdown: coverage in % of the interval of a mean of n episodes, Bayesian and Student's, by n."""
    sizes = (2, 3, 5, 10, 50)
    yield "| scores | " + " | ".join(f"n = {n}" for n in sizes) + " |\n" + "|---" * (1 + len(sizes)) + "|\n"
    for kind in [kind for kind in SCORES if kind != "Gaussian"]:
        cells = [[100 * mean_coverage(kind, n, b, n_simulations) for b in (UNIT, None)] for n in sizes]
        yield f"| {kind} | " + " | ".join(f"{bayes:.0f} / {student:.0f}" for bayes, student in cells) + " |\n"


if __name__ == "__main__":
    intervals.N_DRAWS = 1000
    sys.stdout.writelines(bounded_table(1000))
    sys.stdout.writelines(table([[1], [2], [3], [5]], [[0.0], [0.02], [0.1], [0.5]], 2000))
    equal = [[share, share] for share in (0.0, 0.02, 0.5)]
    sys.stdout.writelines(table([[1, 1], [2, 2], [3, 3], [5, 5], [5, 2], [3, 1]], [*equal, [0.02, 0.5]], 2000))

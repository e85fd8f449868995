import numpy as np
import pytest

from dp.intervals import Z_95, bootstrap_mean, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(10, 20, 0.2993, 0.7007), (0, 50, 0.0, 0.0714), (50, 50, 0.9286, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_at_known_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((successes / n, low, high), abs=1e-4)


def test_wilson_bounds_are_the_shares_that_the_score_test_just_accepts() -> None:
    share, low, high = wilson(327, 500)
    assert low < share < high
    for p in (low, high):
        assert abs(share - p) / np.sqrt(p * (1 - p) / 500) == pytest.approx(Z_95)


def test_bootstrap_is_deterministic_and_brackets_the_mean() -> None:
    values = np.random.default_rng(0).uniform(size=50).tolist()
    first = bootstrap_mean(values)
    assert first == bootstrap_mean(values)
    assert first.value == pytest.approx(np.mean(values))
    normal = Z_95 * np.std(values) / np.sqrt(50)  # the bootstrap's limit for many values
    assert (first.low, first.high) == pytest.approx((first.value - normal, first.value + normal), abs=0.01)


def test_bootstrap_covers_the_true_mean_at_about_its_level() -> None:
    samples = np.random.default_rng(1).beta(2, 1, size=(400, 40))  # skewed, as scores are
    estimates = [bootstrap_mean(sample.tolist(), n_resamples=400) for sample in samples]
    assert 0.91 < np.mean([e.low <= 2 / 3 <= e.high for e in estimates]) < 0.98


def test_bootstrap_of_a_constant_has_no_width() -> None:
    assert bootstrap_mean([0.25] * 10) == (0.25, 0.25, 0.25)

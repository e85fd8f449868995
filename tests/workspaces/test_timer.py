"""What counts as training time."""

import time

import pytest

from workspaces.timer import Timer, duration


def test_pauses_do_not_count_even_while_they_last():
    timer = Timer()
    timer.before_s = 100.0
    timer.start(0)
    with timer.paused():
        time.sleep(0.3)
        assert 100 <= timer.training_s() < 100.2
    assert 100 <= timer.training_s() < 100.2
    assert timer.steps_per_s(10) > 10 / 0.2


def test_a_clock_that_starts_anew_forgets_earlier_pauses():
    """It does after the compilation, behind which the first assessments lie."""
    timer = Timer()
    with timer.paused():
        time.sleep(0.1)
    timer.start(4)
    assert 0 <= timer.training_s() < 0.05
    assert timer.steps_per_s(14) > 10 / 0.05


@pytest.mark.parametrize(("seconds", "text"), [(90, "1.5 min"), (7200, "2.0 h"), (3, "3 s"), (200_000, "2.3 days")])
def test_a_duration_is_told_in_the_unit_that_suits_it(seconds, text):
    assert duration(seconds) == text

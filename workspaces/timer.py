"""Measures the speed of training and predicts its end."""

import logging
import math
import time

log = logging.getLogger(__name__)

SLOW_HOURS = 2
"""Hours of training on a CPU after which a smaller experiment is suggested."""


class Timer:
    """Measures training steps, without validation, rollouts and checkpoints (`with timer.paused()`).

    before_s: seconds that earlier processes of this run spent.
    """

    def __init__(self) -> None:
        self.before_s = 0.0
        self._pause_begin: float | None = None
        self._warned = False
        self.start(0)

    def start(self, step: int) -> None:
        """Starts the clock at `step`."""
        self._pauses_s = self._pauses_since_mark_s = 0.0
        self._begin = self._mark = time.perf_counter()
        self._first_step = self._mark_step = step

    def steps_per_s(self, step: int) -> float:
        """Steps per second since the last call."""
        now = time.perf_counter()
        elapsed = now - self._mark - self._pauses_since_mark_s
        rate = (step - self._mark_step) / max(elapsed, 1e-9)
        self._mark, self._mark_step, self._pauses_since_mark_s = now, step, 0.0
        return rate

    def mean_steps_per_s(self, step: int) -> float:
        """Steps per second since this process began to train."""
        return (step - self._first_step) / max(self._here_s(), 1e-9)

    def training_s(self) -> float:
        """Seconds since the run began, over all its processes."""
        return self.before_s + self._here_s()

    def _here_s(self) -> float:
        now = time.perf_counter() if self._pause_begin is None else self._pause_begin
        return now - self._begin - self._pauses_s

    def paused(self) -> "Timer":
        return self

    def __enter__(self) -> None:
        self._pause_begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        assert self._pause_begin is not None
        pause, self._pause_begin = time.perf_counter() - self._pause_begin, None
        self._pauses_s += pause
        self._pauses_since_mark_s += pause

    def warn_if_slow(self, step: int, num_steps: int, small_experiment: str | None) -> None:
        """Warns once, after three steps, if the rest takes hours and there is a smaller experiment to suggest."""
        if self._warned or step - self._first_step < 3:
            return
        self._warned = True
        left_s = (num_steps - step) * self._here_s() / (step - self._first_step)
        if left_s > 3600 * SLOW_HOURS and small_experiment is not None:
            log.warning(
                "On this CPU the remaining %d steps will take %s. python run.py +experiment=%s is sized for a CPU.",
                num_steps - step, duration(left_s), small_experiment,
            )  # fmt: skip


def duration(seconds: float) -> str:
    """90 -> '1.5 min'."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size or (unit == "min" and seconds >= 60):
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"

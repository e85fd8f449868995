"""A collector for tests: the agent goes here and there, the same way for the same seed."""

import os
import signal

import numpy as np

from dp.tasks.pusht.demonstration import Demonstration, Recorder


class Wander:
    """Starts somewhere else from every third seed, gives up on every fifth; `dies_at` kills its process."""

    def __init__(self, n_steps: int = 12, dies_at: int | None = None) -> None:
        self.n_steps, self.dies_at = n_steps, dies_at

    def __call__(self, seed: int) -> Demonstration | None:
        if seed == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng(seed)
        recorder = Recorder(seed, initial_state=None if seed % 3 else np.array([60.0, 60, 300, 300, seed % 7]))
        for _ in range(self.n_steps + seed % 7):
            recorder.step(rng.uniform(100, 400, 2), rng.normal(0, 3, 2))
        return recorder.demonstration() if seed % 5 else None

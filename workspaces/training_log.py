"""The metrics and lines that tell how the steps of a training go."""

import logging
import time
from pathlib import Path

import torch

from dp.progress import LOG_S
from workspaces.config import Config
from workspaces.logger import Logger
from workspaces.periods import due
from workspaces.timer import duration
from workspaces.train_state import TrainState

log = logging.getLogger(__name__)


class TrainingLog:
    """Logs the means of the last steps when `workspace.every.log` says so, and until then signs of life.

    Args:
        config: the whole resolved configuration.
        state: the training. `state.pending` is emptied when its means are logged.
        facts: a line about the data.
        run_dir: named if training has diverged.
    """

    def __init__(self, config: Config, state: TrainState, facts: str, run_dir: Path, logger: Logger) -> None:
        self.settings, self.state, self.run_dir, self.logger = config["workspace"], state, run_dir, logger
        self._said, self._logged = time.monotonic(), False
        log.info("data: %s", facts)
        log.info("policy: %s", state)

    def start(self, warm: bool) -> None:
        """Starts the clock. warm: whether the training step is ready, or the first ones still compile it."""
        log.info("training begins at step %d of %d", self.state.step, self.settings["num_steps"])
        self._warm = warm
        self.state.timer.start(self.state.step)

    def after_step(self, warm: bool, silent: bool) -> None:
        """Logs what is due. silent: no progress bar shows that the run is alive."""
        state = self.state
        if due("log", state.step, self.settings):
            self._log_means()
        elif silent and not self._logged and time.monotonic() - self._said >= LOG_S:
            self._log_sign_of_life()
        if warm and not self._warm:
            state.timer.start(state.step)  # a rate that counts the compilation says nothing
        self._warm = warm
        if state.policy.device.type == "cpu":
            state.timer.warn_if_slow(state.step, self.settings["num_steps"], self.settings["small_experiment"])

    def _log_means(self) -> None:
        """Logs the means over the steps since the last log, and how long the rest will take."""
        state, settings = self.state, self.settings
        num_steps, samples = settings["num_steps"], settings["batch_size"] * settings["grad_accumulation"]
        state.check_finite(self.run_dir)
        loss, grad_norm = torch.stack(state.pending).mean(0).tolist()
        steps_per_s = state.timer.steps_per_s(state.step)
        metrics = {
            "train/loss": loss,
            "train/grad_norm": grad_norm,
            "train/lr": float(state.lr_schedule.get_last_lr()[0]),
            "train/samples_per_s": steps_per_s * samples,
            "time/training_s": state.timer.training_s(),
        }
        self.logger.log(state.step, metrics)
        left = duration((num_steps - state.step) / steps_per_s)
        log.info("step %d/%d  loss %.4f  %.2f steps/s  %s left", state.step, num_steps, loss, steps_per_s, left)
        state.pending, self._logged = [], True

    def _log_sign_of_life(self) -> None:
        """Logs a line every LOG_S seconds until the first regular one, which may take long."""
        self._said, state = time.monotonic(), self.state
        num_steps, rate = self.settings["num_steps"], state.timer.mean_steps_per_s(state.step)
        left = duration((num_steps - state.step) / rate)
        loss = float(state.pending[-1][0])
        log.info("step %d/%d  loss %.4f  %.2g steps/s  %s left", state.step, num_steps, loss, rate, left)

"""Trains a policy, with rollouts in the loop. A run that is killed at any moment resumes to the bit."""

import math
import signal
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Interval
from tqdm import tqdm

from dp import distributed, engines, limits
from dp.data.batches import Loader
from workspaces import beginning, build, checkpoint, closing, resume
from workspaces.assessment import Assessment, facts_of
from workspaces.base import Config, Workspace
from workspaces.logger import NoLogger
from workspaces.periods import Every
from workspaces.signals import Signals, StopNow
from workspaces.train_state import TrainState
from workspaces.training_log import TrainingLog


class TrainWorkspace(Workspace):
    """One training run."""

    verb = "train"
    trains = True

    def _train(self, loader: Loader) -> None:
        state, batches, bf16 = self.state, iter(loader), self.state.precision == "bf16"
        step = engines.EagerStep(state.policy, state.optimizer, loader.load, self.max_grad_norm, bf16, self.compress)
        train_step = engines.training_step(self.engine, step)
        state.policy.train()
        self.training_log.start(train_step.warm)
        quiet = None if distributed.writes() else True
        with tqdm(total=self.num_steps, initial=state.step, unit="step", disable=quiet, mininterval=1) as bar:
            while True:
                self._assess_and_save()
                if state.step >= self.num_steps:
                    return
                with self.signals.interrupting(not train_step.warm):  # it may compile for minutes
                    state.pending.append(train_step([next(batches) for _ in range(self.grad_accumulation)]))
                if train_step.warm:
                    distributed.hurry()
                state.advance()
                bar.update()
                self.training_log.after_step(train_step.warm, silent=bar.disable)
                state.metrics_offset = self.logger.offset

    def _assess_and_save(self) -> None:
        """Assesses and saves if due, and stops if a signal has come."""
        state = self.state
        with state.timer.paused():
            if not state.evaluated:
                if distributed.WORLD > 1 and self.assessment.due("rollout"):
                    self._save()  # a signal that comes while ranks wait for each other finds the step saved
                with self.signals.interrupting():  # training depends on nothing that an assessment changes
                    self.assessment.assess()
                state.evaluated, state.metrics_offset = True, self.logger.offset
                if self.assessment.worth_saving():
                    self._save()
                if self.assessment.may_take_long():
                    distributed.meet()
        if self.all_stop(self.signals.received is not None):
            self.signals.received = self.signals.received or signal.SIGTERM  # another rank's
            self._save_and_leave()

    def __init__(
        self,
        config: Config,
        num_steps: limits.Positive,
        batch_size: limits.Width,
        grad_accumulation: limits.Width,
        max_grad_norm: Annotated[float, Interval(gt=0, le=math.inf)],
        precision: Literal["auto", "fp32", "bf16"],
        engine: Literal["auto", "eager", "compile", "graph"],
        every: Every,
        n_best: limits.Positive,
        loader: Literal["auto", "resident", "dataloader"],
        n_loader_workers: limits.Workers,
        small_experiment: str | None,
        compress: Literal["bf16"] | None = None,
    ) -> None:
        """Keeps the arguments, which `configs/workspace/train.yaml` explains; `run` builds the parts."""
        super().__init__(config)
        if config["checkpoint"] is not None:
            raise ValueError("checkpoint=... is for other verbs. To train from one on: init_from=PATH")
        engines.choose(engine, self.device)
        distributed.own_rows(batch_size)
        self.num_steps, self.grad_accumulation, self.max_grad_norm = num_steps, grad_accumulation, max_grad_norm
        self.precision, self.engine, self.compress = precision, engine, compress
        self.signals, self.env_runner, self.logger = Signals(), *[cast(Any, None)] * 2

    def run(self) -> float | None:
        """Trains to `num_steps`. Returns the best score, larger is better, or None if there is none."""
        torch.manual_seed(self.config["seed"])
        if distributed.WORLD > 1 or (self.run_dir / ".lock").is_file():
            self.take_run_dir()  # before the data are read: another process may have it
        self.run_dir, self.all_stop = distributed.same(self.run_dir), distributed.Agreement()
        beginning.load_run(self.run_dir, self.config, left_open=("auto", None))  # before data are read, or even made
        self._build()
        self._open()
        if self.state.step < self.num_steps or not self.state.evaluated:
            self._train_or_stop()
        self.score = self.state.best[0]["score"] if self.state.best else None
        closing.say(self.state, self.run_dir, self.config)
        return self.score

    def _build(self) -> None:
        with distributed.writer_first():
            self.env_runner, data = build.env_runner(self.config), build.demonstrations(self.config)
        self.config["dataset"] |= {"path": [str(path) for path in data.paths], "sha256": data.sha256}  # not "auto"
        self.packages, self.train_seeds = build.task(self.config).packages, data.train_seeds
        self.state = TrainState.fresh(self.config, data.normalizer, self.device)
        if self.config.get("init_from") is not None:
            beginning.begin_from(self.state, self.config, self.run_dir)
            data.normalize_with(self.state.policy.normalizer)
        self.train_windows, self.val_windows = build.windows(self.config, data)
        self.facts = facts_of(data, self.train_windows, self.val_windows)
        engines.speed_up_sampling(self.engine, self.state.ema.model)
        if self.env_runner is not None:
            self.env_runner.start()  # what fails in it fails before step 1

    def _open(self) -> None:
        """Opens the run directory, and resumes its run if there is one."""
        self.take_run_dir()
        saved = beginning.load_run(self.run_dir, self.config)
        self.state.precision = beginning.arithmetic(self, self.precision, saved)
        self.config["workspace"]["precision"] = self.state.precision
        self.begin_run({"precision": self.state.precision})
        run_id = saved["wandb_id"] if saved else None
        self.logger = build.logger(self.config, self, "train", run_id) if distributed.writes() else NoLogger()
        beginning.take_up(self.state, saved, self.config, self.run_dir)
        self.logger.truncate(self.state.metrics_offset)
        self.about = checkpoint.about(self.config, self.packages, self.logger.run_id)
        parts = (self.state, self.val_windows, self.env_runner, self.train_seeds)
        self.assessment = Assessment(self.config, *parts, self.run_dir, self.logger, self.about)
        self.training_log = TrainingLog(self.config, self.state, self.facts, self.run_dir, self.logger)

    def _train_or_stop(self) -> None:
        try:
            with self.signals, build.loader(self.config, self.train_windows, self.state.step, self.device) as loader:
                self._train(loader)
        except StopNow:
            if not self.state.evaluated:
                self._save_and_leave()
            # It came in a first step: random numbers have been drawn for it.
            raise self.signals.interrupted("stopped before the first step. To start, repeat the command") from None
        except OSError as error:  # the machine's fault, and perhaps mended soon
            error.add_note(f"To go on: {resume.how_to_resume(self.run_dir, self.config)}")
            raise

    def _save(self) -> None:
        if not distributed.writes():
            return
        self.check_run_dir()
        self.state.save(self.run_dir, self.about)

    def _save_and_leave(self) -> None:
        self._save()
        command = resume.how_to_resume(self.run_dir, self.config)
        raise self.signals.interrupted(f"saved at step {self.state.step}. To go on: {command}") from None

    def close(self, failed: bool) -> None:
        if self.env_runner is not None:
            self.env_runner.close()
        if self.logger is not None:
            self.logger.close(failed)

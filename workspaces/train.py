"""Trains a policy, with rollouts in the loop. Killed at any moment, the same run directory goes on, to the bit."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Literal, cast

import torch
from tqdm import tqdm

from dp import engines
from workspaces import build, checkpoint, record
from workspaces.assessment import Assessment, facts_of
from workspaces.base import Config, Signals, StopNow, Workspace
from workspaces.settings import check_choice, check_whole
from workspaces.train_state import TrainState, choose_precision, load_run

log = logging.getLogger(__name__)


class TrainWorkspace(Workspace):
    """One training run."""

    def _train(self) -> None:
        state = self.state
        batches, train_step = self._batches_and_step()
        state.policy.train()
        log.info("training begins at step %d of %d", state.step, self.num_steps)
        state.timer.start(state.step)
        begin = state.step
        with tqdm(total=self.num_steps, initial=state.step, unit="step", disable=None, mininterval=1) as bar:
            while True:
                self._assess_and_save()
                if state.step >= self.num_steps:
                    return
                cold = not train_step.warm
                with self._compiling(cold and state.step == begin):
                    state.pending.append(train_step([next(batches) for _ in range(self.grad_accumulation)]))
                if cold and train_step.warm:
                    state.timer.start(state.step + 1)  # a rate that counts the compilation says nothing
                state.lr_schedule.step()
                state.ema.update(state.policy)
                state.step, state.evaluated = state.step + 1, False
                bar.update()
                if self.assessment.due("log"):
                    self.assessment.log_training()
                state.metrics_offset = self.logger.offset
                if self.device.type == "cpu":
                    state.timer.warn_if_slow(state.step, self.num_steps, self.small_experiment)

    def _assess_and_save(self) -> None:
        """Does what is due at this step, and leaves if a signal has come."""
        state, due = self.state, self.assessment.due
        with state.timer.paused():
            if not state.evaluated:
                self.signals.interruptible = True  # training depends on nothing that an assessment changes
                self.assessment.assess()
                self.signals.interruptible = False
                state.evaluated, state.metrics_offset = True, self.logger.offset
                last = state.step == self.num_steps
                if (due("checkpoint") and state.saving_pays()) or due("rollout") or state.step == 1 or last:
                    state.save(self.run_dir, self.about)  # from the first step on the directory is this run's
        if self.signals.received is not None:
            self._save_and_leave()

    def __init__(
        self,
        config: Config,
        num_steps: int,
        batch_size: int,
        grad_accumulation: int,
        max_grad_norm: float,
        precision: Literal["auto", "fp32", "bf16"],
        engine: Literal["auto", "eager", "compile", "graph"],
        every: dict[str, int],
        n_best: int,
        loader: Literal["auto", "resident", "dataloader"],
        n_loader_workers: int,
        small_experiment: str | None,
    ) -> None:
        """Only checks the arguments, which `configs/workspace/train.yaml` explains; `run` builds the parts."""
        super().__init__(config)
        counts = {"num_steps": num_steps, "batch_size": batch_size, "grad_accumulation": grad_accumulation}
        for name, count in {**counts, **{f"every.{name}": n for name, n in every.items()}}.items():
            check_whole(f"workspace.{name}", count, 1)
        if not max_grad_norm > 0:
            raise ValueError(f"workspace.max_grad_norm={max_grad_norm}, expected a positive number, or inf")
        check_choice("workspace.precision", precision, ("auto", "fp32", "bf16"))
        check_choice("workspace.loader", loader, ("auto", "resident", "dataloader"))
        engines.choose(engine, self.device)
        self.num_steps, self.grad_accumulation, self.max_grad_norm = num_steps, grad_accumulation, max_grad_norm
        self.precision, self.engine, self.small_experiment = precision, engine, small_experiment
        self.signals, self.env_runner, self.logger = Signals(), cast(Any, None), cast(Any, None)

    def run(self) -> float | None:
        """Trains to `num_steps`. Returns the best score, the larger the better; None where nothing gives one."""
        torch.manual_seed(self.config["seed"])
        self._build()
        self._open()
        with self.signals:
            try:
                self._train()
            except StopNow:
                self._save_and_leave()
        self.score = self.state.best[0]["score"] if self.state.best else None
        return self.score

    def _build(self) -> None:
        self.env_runner, data = build.env_runner(self.config), build.demonstrations(self.config)
        self.config["dataset"] |= {"path": [str(path) for path in data.paths], "sha256": data.sha256}  # not "auto"
        self.train_windows, self.val_windows = build.windows(self.config, data)
        self.packages, self.train_seeds = build.task(self.config).packages, data.train_seeds
        self.facts = facts_of(data, self.train_windows, self.val_windows)
        self.state = TrainState.fresh(self.config, data.normalizer, self.device)
        engines.speed_up_sampling(self.engine, self.state.ema.model)

    def _open(self) -> None:
        """Opens the run directory, and resumes the run that it holds, if it does."""
        self.take_run_dir()
        saved = load_run(self.run_dir, self.config)
        self.config["workspace"]["precision"] = choose_precision(self.precision, self.device, saved)
        self.begin_run("train")
        self.logger = build.logger(self.config, self, "train", saved["wandb_id"] if saved else None)
        self.state.precision = self.config["workspace"]["precision"]
        if saved is not None:
            self.state.load_state_dict(saved)
            if self.config["n_threads"] == "auto" and self.state.n_threads is not None:
                self.use_threads(self.state.n_threads)  # the last bit of a sum depends on their number
            log.info("resuming %s at step %d", self.run_dir, self.state.step)
        self.logger.truncate(self.state.metrics_offset)
        self.about = {
            "config": self.config,
            "versions": checkpoint.versions(self.packages),
            "wandb_id": self.logger.run_id,
        }
        parts = (self.state, self.val_windows, self.env_runner, self.train_seeds)
        self.assessment = Assessment(self.config, *parts, self.run_dir, self.logger, self.about)

    @contextlib.contextmanager
    def _compiling(self, begins: bool) -> Iterator[None]:
        """A context for the first step, which may compile for minutes: a signal ends it at once."""
        self.signals.interruptible = begins
        try:
            yield
        except StopNow:
            # Not saved: random numbers have been drawn for a step that was not made.
            raise self.signals.interrupted("stopped before the first step. To start again: the same command") from None
        finally:
            self.signals.interruptible = False

    def _batches_and_step(self) -> tuple[Iterator[Any], engines.FallingBack]:
        state = self.state
        log.info("data: %s", self.facts)
        log.info("policy: %s", state)
        loader = build.loader(self.config, self.train_windows, state.step, self.device)
        bf16 = state.precision == "bf16"
        step = engines.EagerStep(state.policy, state.optimizer, loader.load, self.max_grad_norm, bf16)
        train_step = engines.training_step(self.engine, step)
        if not train_step.warm:
            log.info("compiling the training step, for minutes the first time (workspace.engine=eager starts at once)")
        return iter(loader), train_step

    def _save_and_leave(self) -> None:
        self.state.save(self.run_dir, self.about)
        overrides = [o for o in record.overrides() if not o.startswith("run_dir=")]
        command = " ".join(["python run.py", *overrides, f"run_dir={self.run_dir}"])
        raise self.signals.interrupted(f"saved at step {self.state.step}. To go on: {command}")

    def close(self, failed: bool) -> None:
        if self.env_runner is not None:
            self.env_runner.close()
        if self.logger is not None:
            self.logger.close(failed)

"""Trains a policy, with rollouts in the loop. A run that is killed at any moment resumes to the bit."""

import logging
import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypedDict, cast

import torch
from annotated_types import Interval
from tqdm import tqdm

from dp import engines, limits
from dp.data.batches import lost_worker
from workspaces import build, checkpoint, closing, resume
from workspaces.assessment import Assessment, facts_of
from workspaces.base import Config, Signals, StopNow, Workspace
from workspaces.train_state import TrainState, begin_from, choose_precision, load_run, warn_if_inexact, warn_if_short

log = logging.getLogger(__name__)


class Every(TypedDict):
    """Periods in optimizer steps."""

    log: limits.Positive
    validate: limits.Positive
    rollout: limits.Positive
    checkpoint: limits.Positive


class TrainWorkspace(Workspace):
    """One training run."""

    trains = True

    def _train(self) -> None:
        state = self.state
        batches, train_step = self._batches_and_step()
        state.policy.train()
        log.info("training begins at step %d of %d", state.step, self.num_steps)
        state.timer.start(state.step)
        with tqdm(total=self.num_steps, initial=state.step, unit="step", disable=None, mininterval=1) as bar:
            while True:
                self._assess_and_save()
                if state.step >= self.num_steps:
                    return
                cold = not train_step.warm
                with self.signals.interrupting(cold):  # it may compile for minutes
                    state.pending.append(train_step([next(batches) for _ in range(self.grad_accumulation)]))
                state.lr_schedule.step()
                state.ema.update(state.policy)
                state.step, state.evaluated = state.step + 1, False
                bar.update()
                if self.assessment.due("log"):
                    self.assessment.log_training()
                elif bar.disable:
                    self.assessment.log_sign_of_life()
                if cold and train_step.warm:
                    state.timer.start(state.step)  # a rate that counts the compilation says nothing
                state.metrics_offset = self.logger.offset
                if self.device.type == "cpu":
                    state.timer.warn_if_slow(state.step, self.num_steps, self.small_experiment)

    def _assess_and_save(self) -> None:
        """Assesses and saves if due, and stops if a signal has come."""
        state, due = self.state, self.assessment.due
        with state.timer.paused():
            if not state.evaluated:
                with self.signals.interrupting():  # training depends on nothing that an assessment changes
                    self.assessment.assess()
                state.evaluated, state.metrics_offset = True, self.logger.offset
                last = state.step == self.num_steps
                if (due("checkpoint") and state.saving_pays()) or due("rollout") or state.step == 1 or last:
                    self._save()  # from the first step on the directory is this run's
        if self.signals.received is not None:
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
    ) -> None:
        """Keeps the arguments, which `configs/workspace/train.yaml` explains; `run` builds the parts."""
        super().__init__(config)
        if config["checkpoint"] is not None:
            raise ValueError("checkpoint=... is for other verbs. To train from one on: init_from=PATH")
        engines.choose(engine, self.device)
        self.num_steps, self.grad_accumulation, self.max_grad_norm = num_steps, grad_accumulation, max_grad_norm
        self.precision, self.engine, self.small_experiment = precision, engine, small_experiment
        self.signals, self.env_runner, self.logger, self.loader = Signals(), *[cast(Any, None)] * 3

    def run(self) -> float | None:
        """Trains to `num_steps`. Returns the best score, larger is better, or None if there is none."""
        torch.manual_seed(self.config["seed"])
        if (self.run_dir / ".lock").is_file():
            self.take_run_dir()  # before the data are read: another process may have it
        self._build()
        self._open()
        if self.state.step < self.num_steps or not self.state.evaluated:
            self._train_or_stop()
        self.score = self.state.best[0]["score"] if self.state.best else None
        closing.say(self.state, self.run_dir, self.config)
        return self.score

    def _train_or_stop(self) -> None:
        with self.signals:
            try:
                self._train()
            except StopNow:
                if self.state.evaluated:  # it came in a first step: random numbers have been drawn for it
                    raise self.signals.interrupted(
                        "stopped before the first step. To start, repeat the command"
                    ) from None
                self._save_and_leave()
            except Exception as error:
                if not lost_worker(error):
                    raise
                command = resume.how_to_resume(self.run_dir, self.config, "workspace.n_loader_workers=0")
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise ChildProcessError(
                    f"a worker of the DataLoader died, perhaps out of memory or of /dev/shm ({reason:.200}). "
                    f"What was saved before is intact. To go on without workers: {command}"
                ) from error

    def _build(self) -> None:
        log.info("%s: reading the data", self.config["name"])
        self.env_runner, data = build.env_runner(self.config), build.demonstrations(self.config)
        self.config["dataset"] |= {"path": [str(path) for path in data.paths], "sha256": data.sha256}  # not "auto"
        self.packages, self.train_seeds = build.task(self.config).packages, data.train_seeds
        self.state = TrainState.fresh(self.config, data.normalizer, self.device)
        if self.config.get("init_from") is not None:
            begin_from(self.state, self.config, self.run_dir)
            data.normalize_with(self.state.policy.normalizer)
        self.train_windows, self.val_windows = build.windows(self.config, data)
        self.facts = facts_of(data, self.train_windows, self.val_windows)
        engines.speed_up_sampling(self.engine, self.state.ema.model)
        if self.env_runner is not None:
            self.env_runner.start()  # what fails in it fails before step 1

    def _open(self) -> None:
        """Opens the run directory, and resumes its run if there is one."""
        self.take_run_dir()
        saved = load_run(self.run_dir, self.config)
        self.config["workspace"]["precision"] = choose_precision(self.precision, self.device, saved)
        if saved is not None and self.config["n_threads"] == "auto" and saved.get("n_threads") is not None:
            self.use_threads(saved["n_threads"])  # the last bit of a sum depends on their number
        self.begin_run("train", {"precision": self.config["workspace"]["precision"]})
        self.logger = build.logger(self.config, self, "train", saved["wandb_id"] if saved else None)
        self.state.precision = self.config["workspace"]["precision"]
        if saved is not None:
            self.state.load_state_dict(saved)
            log.info("resuming %s at step %d", self.run_dir, self.state.step)
            warn_if_inexact(saved, self.state.precision)
        else:
            warn_if_short(self.config)
        self.logger.truncate(self.state.metrics_offset)
        self.about = {
            "config": self.config,
            "versions": checkpoint.versions(self.packages),
            "wandb_id": self.logger.run_id,
        }
        parts = (self.state, self.val_windows, self.env_runner, self.train_seeds)
        self.assessment = Assessment(self.config, *parts, self.run_dir, self.logger, self.about)

    def _batches_and_step(self) -> tuple[Iterator[Any], engines.FallingBack]:
        state = self.state
        log.info("data: %s", self.facts)
        log.info("policy: %s", state)
        self.loader = loader = build.loader(self.config, self.train_windows, state.step, self.device)
        bf16 = state.precision == "bf16"
        step = engines.EagerStep(state.policy, state.optimizer, loader.load, self.max_grad_norm, bf16)
        train_step = engines.training_step(self.engine, step)
        if not train_step.warm:
            log.info(
                "compiling the training step, which takes minutes the first time (workspace.engine=eager starts "
                "at once)"
            )
        return iter(loader), train_step

    def _save(self) -> None:
        self.check_run_dir()
        self.state.save(self.run_dir, self.about)

    def _save_and_leave(self) -> None:
        self._save()
        command = resume.how_to_resume(self.run_dir, self.config)
        raise self.signals.interrupted(f"saved at step {self.state.step}. To go on: {command}")

    def close(self, failed: bool) -> None:
        for part in (self.loader, self.env_runner):
            if part is not None:
                part.close()
        if self.logger is not None:
            self.logger.close(failed)

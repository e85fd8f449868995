"""Trains a policy, with rollouts in the loop. Killed at any moment, the same run directory goes on, to the bit."""

import logging
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from dp import engines
from dp.data.batches import BatchOrder, Loader, ResidentLoader, StreamedLoader, fits
from dp.data.windows import prepare
from dp.intervals import Estimate
from dp.kernels.calibration import bf16_pays
from workspaces import build, checkpoint, record
from workspaces.base import Config, Signals, StopNow, Workspace
from workspaces.errors import Interrupted, flatten
from workspaces.rollouts import metrics_of, named, save_rollouts

log = logging.getLogger(__name__)

MAY_DIFFER = ("run_dir", "device", "n_threads", "kernels", "checkpoint", "logger.", "dataset.path", "dataset.source",
              "env_runner.n_workers", "env_runner.n_envs", "workspace.num_steps", "workspace.loader",
              "workspace.n_loader_workers", "workspace.engine", "workspace.precision")  # fmt: skip
"""Settings with which a run may be resumed although it was begun with others."""

MAX_VAL_WINDOWS, MAX_SAMPLED_WINDOWS = 512, 64
SLOW_HOURS = 2


class TrainWorkspace(Workspace):
    """One training run.

    Args:
        config: the whole resolved configuration; the parts are built from it.
        num_steps: optimizer steps.
        batch_size: windows of one forward pass.
        grad_accumulation: forward passes of one optimizer step.
        max_grad_norm: gradients are scaled down to this norm.
        precision: fp32, bf16 (autocast of the loss), or auto: bf16 where the device multiplies faster in it.
        engine: how a step runs (`dp.engines`): auto, eager, compile or graph.
        every: steps between two of "log", "validate", "rollout", "checkpoint".
        n_best: checkpoints kept by score.
        loader: auto, resident (data on the device) or dataloader (torch's DataLoader).
        n_loader_workers: processes of the DataLoader.
        small_experiment: what to suggest where this one takes hours on a CPU, or None.
    """

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
        super().__init__(config)
        _check_counts(num_steps, batch_size, grad_accumulation, every)
        if not max_grad_norm > 0:
            raise ValueError(f"workspace.max_grad_norm={max_grad_norm}, expected a positive number, or inf")
        if precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"workspace.precision={precision}, expected auto, fp32 or bf16")
        engines.choose(engine, self.device)
        if loader not in ("auto", "resident", "dataloader"):
            raise ValueError(f"workspace.loader={loader}, expected auto, resident or dataloader")
        self.num_steps, self.batch_size, self.grad_accumulation = num_steps, batch_size, grad_accumulation
        self.max_grad_norm, self.every, self.n_best, self.engine = max_grad_norm, every, n_best, engine
        self.precision = self._choose_precision(precision)
        config["workspace"]["precision"] = self.precision  # config.yaml and wandb say which, not "auto"
        self.loader, self.n_loader_workers, self.small_experiment = loader, n_loader_workers, small_experiment

        torch.manual_seed(config["seed"])
        self.env_runner = build.env_runner(config)
        self.data = build.demonstrations(config)
        found = {"path": [str(path) for path in self.data.paths], "sha256": self.data.sha256}
        config["dataset"] |= found  # config.yaml and wandb say which data, not "auto"
        steps = (config["horizon"], config["n_obs_steps"], config["n_action_steps"])
        self.train_windows = self.data.windows(self.data.train_episodes, *steps)
        self.val_windows = self.data.windows(self.data.split.val, *steps)
        self.policy = build.policy(config, self.data.normalizer).to(self.device)
        self.ema = build.ema(config, self.policy)
        engines.speed_up_sampling(engine, self.ema.model)
        self.optimizer = build.optimizer(config, self.policy.parameters())
        self.lr_schedule = build.lr_schedule(config, self.optimizer)

        self.step = 0
        self.evaluated = False  # whether what is due at this step has been done
        self.best: list[dict[str, Any]] = []  # {"step", "file", "score", "score_ci_..."}, best first
        self.pending: list[torch.Tensor] = []  # (loss, gradient norm) of the steps since the last log, on the device
        self.metrics_offset = 0  # bytes of metrics.jsonl that belong to the state so far
        self.timer = Timer()
        self.signals = Signals()
        self.logger: Any = None

    def run(self) -> float | None:
        """Trains to `num_steps`. Returns the best score."""
        self._open()
        log.info(
            "data: %s, %d training windows of %d episodes, %d validation windows of %d episodes",
            " + ".join(self.config["dataset"]["path"]), len(self.train_windows), len(self.data.train_episodes),
            len(self.val_windows), len(self.data.split.val),
        )  # fmt: skip
        n_parameters = sum(p.numel() for p in self.policy.parameters())
        threads = f" with {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        log.info("policy: %.1f M parameters on %s%s, %s", n_parameters / 1e6, self.device, threads, self.precision)
        with self.signals:
            try:
                self._train()
            except StopNow:
                self._save_and_leave()
        if self.best:
            self.score = self.best[0]["score"]
        return self.score

    def _train(self) -> None:
        loader = self._loader()
        batches = iter(loader)
        bf16 = self.precision == "bf16"
        step = engines.EagerStep(self.policy, self.optimizer, loader.load, self.max_grad_norm, bf16)
        train_step = engines.training_step(self.engine, step)
        self.policy.train()
        log.info("training begins at step %d of %d", self.step, self.num_steps)
        self.timer.start(self.step)
        with tqdm(total=self.num_steps, initial=self.step, unit="step", disable=None, mininterval=1) as bar:
            while True:
                if not self.evaluated:
                    self._do_what_is_due()
                    self.evaluated = True
                    self.metrics_offset = self.logger.offset
                    first = self.step == 1  # from now on the directory is this run's
                    if self._due("checkpoint") or self._due("rollout") or first:
                        with self.timer.paused():
                            self._save()
                if self.signals.received is not None:
                    self._save_and_leave()
                if self.step >= self.num_steps:
                    return
                self.pending.append(train_step([next(batches) for _ in range(self.grad_accumulation)]))
                self.lr_schedule.step()
                self.ema.update(self.policy)
                self.step += 1
                self.evaluated = False
                bar.update()
                if self._due("log"):
                    self._log_training()
                self.metrics_offset = self.logger.offset
                self.timer.warn_if_slow(self)

    def _loader(self) -> Loader:
        start = self.step * self.grad_accumulation
        order = BatchOrder(len(self.train_windows), self.batch_size, self.config["seed"], start)
        if self.loader == "resident" or (self.loader == "auto" and fits(self.train_windows, self.device)):
            return ResidentLoader(self.train_windows, order, self.device)
        return StreamedLoader(self.train_windows, order, self.device, self.n_loader_workers)

    def _choose_precision(self, precision: str) -> str:
        pays = bf16_pays(self.device) if precision != "fp32" else False
        if precision == "bf16" and not pays:
            log.warning("This CPU emulates bfloat16, slowly: workspace.precision=auto takes what is faster.")
        return precision if precision != "auto" else "bf16" if pays else "fp32"

    def _due(self, what: str) -> bool:
        """Whether the present step is one for `what`; the last step is one for everything."""
        return self.step > 0 and (self.step % self.every[what] == 0 or self.step == self.num_steps)

    def _do_what_is_due(self) -> None:
        """Validation and rollouts. They change nothing that training depends on, so a signal may cut them short."""
        self.signals.interruptible = True
        with self.timer.paused():
            if self._due("validate") and len(self.val_windows):
                self._check_finite()
                self._validate()
            if self._due("rollout"):
                self._check_finite()
                self._roll_out()
        self.signals.interruptible = False

    def _log_training(self) -> None:
        self._check_finite()
        loss, grad_norm = torch.stack(self.pending).mean(0).tolist()
        steps_per_s = self.timer.steps_per_s(self.step)
        self.logger.log(
            self.step,
            {
                "train/loss": loss,
                "train/grad_norm": grad_norm,
                "train/lr": float(self.lr_schedule.get_last_lr()[0]),
                "train/samples_per_s": steps_per_s * self.batch_size * self.grad_accumulation,
                "time/training_s": self.timer.training_s(),
            },
        )
        left = (self.num_steps - self.step) / steps_per_s
        log.info(
            "step %d/%d  loss %.4f  %.2f steps/s  %s left", self.step, self.num_steps, loss, steps_per_s, duration(left)
        )
        self.pending = []

    def _check_finite(self) -> None:
        """Raises ValueError naming the first step whose loss or gradient was not finite. Waits for the device."""
        if not self.pending:
            return
        bad = ~torch.isfinite(torch.stack(self.pending)).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            step = self.step - len(self.pending) + first + 1
            loss, grad_norm = self.pending[first].tolist()
            raise ValueError(
                f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}. What was "
                f"saved before is kept in {self._checkpoints}; try a smaller optimizer.lr or workspace.precision=fp32"
            )

    @torch.no_grad()
    def _validate(self) -> None:
        """Loss and action error of the EMA policy on the held-out episodes, with the same noise every time."""
        start = time.perf_counter()
        generator = torch.Generator(self.device).manual_seed(self.config["seed"])
        losses = []
        index = self._val_index(MAX_VAL_WINDOWS)
        for part in index.split(self.batch_size):
            batch = prepare(self.val_windows.gather(part), self.device)
            losses.append(self.ema.model.loss(batch, generator) * len(part))
        batch = prepare(self.val_windows.gather(self._val_index(MAX_SAMPLED_WINDOWS)), self.device)
        sampled = self.ema.model.sample(self.ema.model.condition(batch["obs"]), generator)
        metrics = {
            "val/loss": (torch.stack(losses).sum() / len(index)).item(),
            "val/action_mse": (sampled - batch["action"]).square().mean().item(),
            "time/validate_s": time.perf_counter() - start,
        }
        self.logger.log(self.step, metrics)

    def _val_index(self, most: int) -> torch.Tensor:
        """At most `most` validation windows, evenly spread."""
        return torch.linspace(0, len(self.val_windows) - 1, min(most, len(self.val_windows))).long()

    def _roll_out(self) -> None:
        """Rollouts of the EMA policy, and a checkpoint of it if it is among the best."""
        start = time.perf_counter()
        test = self.env_runner.run(self.ema.model, self.device)
        train = self.env_runner.run_train(self.ema.model, self.device, self.data.train_seeds)
        metrics = metrics_of(test, train) | {"time/rollout_s": time.perf_counter() - start}
        videos = save_rollouts(self.run_dir, self.step, test, train)
        self._keep_if_best(test.score)
        self.logger.log(self.step, metrics)
        best = {key: value for key, value in self.best[0].items() if key != "file"}
        self.logger.summarize({"best": best, "last": {"step": self.step, **named("score", test.score)}})
        self.logger.log_episodes(self.step, [e.row() for e in test.episodes], videos)
        log.info(
            "step %d: score %.3f [%.3f, %.3f], success %.0f %% [%.0f, %.0f] on seeds %d-%d",
            self.step, *test.score, *(100 * x for x in test.success), 
            self.env_runner.seeds[0], self.env_runner.seeds[-1],
        )  # fmt: skip

    def _keep_if_best(self, score: Estimate) -> None:
        file = f"best-{self.step:06d}-{score.value:.3f}.pt"
        entry: dict[str, Any] = {"step": self.step, "file": file, **named("score", score)}
        others = [e for e in self.best if e["step"] != self.step]  # rollouts that a signal cut short are repeated
        ranked = sorted([*others, entry], key=lambda e: (-e["score"], e["step"]))[: self.n_best]
        if entry in ranked:
            state = {"step": self.step, "score": score.value, "ema": self.ema.state_dict(), **self._about()}
            checkpoint.save(self._checkpoints / entry["file"], state)
        self.best = ranked

    @property
    def _checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def _about(self) -> dict[str, Any]:
        return {"config": self.config, "versions": checkpoint.versions(), "wandb_id": self.logger.run_id}

    def _save(self) -> None:
        """Writes last.pt. Raises ValueError instead where the weights are not finite any more."""
        self._check_finite()
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "policy": self.policy.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "n_threads": torch.get_num_threads(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
            "best": self.best,
            "pending": torch.stack(self.pending).cpu() if self.pending else torch.empty(0, 2),
            "metrics_offset": self.metrics_offset,
            "training_s": self.timer.training_s(),
            **self._about(),
        }
        checkpoint.save(self._checkpoints / "last.pt", state)
        # Only now: a last.pt that is older than a rollout may still name the files that this one does not.
        for file in self._checkpoints.glob("best-*.pt"):
            if file.name not in [entry["file"] for entry in self.best]:
                file.unlink()

    def _save_and_leave(self) -> None:
        self._save()
        assert self.signals.received is not None
        overrides = [o for o in record.overrides() if not o.startswith("run_dir=")]
        command = " ".join(["python run.py", *overrides, f"run_dir={self.run_dir}"])
        name = Signals.NAMES[self.signals.received]  # type: ignore[index]
        raise Interrupted(f"{name}: saved at step {self.step}. To go on: {command}", 128 + self.signals.received)

    def _open(self) -> None:
        """Opens the run directory, and takes up the run that it holds, if it does."""
        self.take_run_dir()
        last = self._checkpoints / "last.pt"
        state = checkpoint.load(last) if last.is_file() else None
        if state is not None:
            self._check_same_run(state["config"])
        self.begin_run("train")
        self.logger = build.logger(self.config, self, "train", state["wandb_id"] if state else None)
        if state is not None:
            self._restore(state)
            log.info("resuming %s at step %d", self.run_dir, self.step)
        self.logger.truncate(self.metrics_offset)

    def _restore(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        if self.config["n_threads"] == "auto":
            self.use_threads(state.get("n_threads", "auto"))  # as before, for the sake of the last bit
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["rng_cuda"] is not None:
            torch.cuda.set_rng_state(state["rng_cuda"])
        self.step, self.best = state["step"], state["best"]
        self.evaluated = state["evaluated"]
        self.pending = list(state["pending"].to(self.device))
        self.metrics_offset = state["metrics_offset"]
        self.timer.before_s = state["training_s"]

    def _check_same_run(self, saved: Config) -> None:
        """Raises ValueError where the run directory holds a run with other settings."""
        old, new = flatten(saved), flatten(self.config)
        differing = [
            key
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and not key.startswith(MAY_DIFFER)
        ]
        if differing:
            shown = ", ".join(f"{key}={old.get(key)} there, {new.get(key)} here" for key in differing[:3])
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ValueError(
                f"{self.run_dir} holds another run: {shown}{more}. Give the settings it was begun with "
                f"({self.run_dir / 'config.yaml'}), or another run_dir"
            )

    def close(self, failed: bool) -> None:
        self.env_runner.close()
        if self.logger is not None:
            self.logger.close(failed)


class Timer:
    """How fast training is, not counting validation, rollouts and checkpoints."""

    def __init__(self) -> None:
        self.before_s = 0.0  # what earlier processes of this run spent
        self.pauses_s = self.pauses_since_mark_s = 0.0
        self._warned = False
        self.start(0)

    def start(self, step: int) -> None:
        """Training begins now, at `step`."""
        self.begin = self.mark = time.perf_counter()
        self.first_step = self.mark_step = step

    def steps_per_s(self, step: int) -> float:
        """Since the last call."""
        now = time.perf_counter()
        elapsed = now - self.mark - self.pauses_since_mark_s
        rate = (step - self.mark_step) / max(elapsed, 1e-9)
        self.mark, self.mark_step, self.pauses_since_mark_s = now, step, 0.0
        return rate

    def training_s(self) -> float:
        """Since the run began, whatever number of processes it took."""
        return self.before_s + self._here_s()

    def _here_s(self) -> float:
        return time.perf_counter() - self.begin - self.pauses_s

    def paused(self) -> "Timer":
        return self

    def __enter__(self) -> None:
        self._pause_begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        pause = time.perf_counter() - self._pause_begin
        self.pauses_s += pause
        self.pauses_since_mark_s += pause

    def warn_if_slow(self, run: TrainWorkspace) -> None:
        """Once, after a few steps on a CPU: how long this will take, and what takes less."""
        if self._warned or run.device.type != "cpu" or run.step - self.first_step < 3:
            return
        self._warned = True
        hours = (run.num_steps - run.step) * self._here_s() / (run.step - self.first_step) / 3600
        if hours > SLOW_HOURS and run.small_experiment is not None:
            log.warning(
                "On this CPU the remaining %d steps will take %s. python run.py +experiment=%s is sized for a CPU.",
                run.num_steps - run.step, duration(3600 * hours), run.small_experiment,
            )  # fmt: skip


def duration(seconds: float) -> str:
    """90 -> '1.5 min'."""
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size or (unit == "min" and seconds >= 60):
            return f"{seconds / size:.1f} {unit}"
    return f"{math.ceil(seconds)} s"


def _check_counts(num_steps: int, batch_size: int, grad_accumulation: int, every: dict[str, int]) -> None:
    counts = {"num_steps": num_steps, "batch_size": batch_size, "grad_accumulation": grad_accumulation}
    for name, count in {**counts, **{f"every.{name}": n for name, n in every.items()}}.items():
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"workspace.{name}={count}, expected a whole number of at least 1")

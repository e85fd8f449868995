"""Assesses a policy in training: validation, rollouts, and checkpoints of the best policies."""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dp import distributed
from dp.data import Demonstrations
from dp.data.windows import WindowDataset, prepare
from dp.policy import DiffusionPolicy
from dp.progress import Progress
from dp.rollouts.runner import EnvRunner, check_finite
from workspaces import checkpoint
from workspaces.config import Config
from workspaces.logger import Logger
from workspaces.periods import due
from workspaces.rollouts import counted, metrics_of, named, save_rollouts, text_of
from workspaces.train_state import TrainState

log = logging.getLogger(__name__)

MAX_VAL_WINDOWS, MAX_SAMPLED_WINDOWS = 512, 64
"""Most windows in the validation loss, and in the error of sampled actions."""

VAL_METRIC = "val/action_mse"
"""Metric of the best checkpoints of a task without a simulator. Smaller is better."""


class Assessment:
    """Judges the EMA policy of `state`, logs the result, and keeps checkpoints of the best.

    The best are those with the highest scores in rollouts, or, without a simulator, with the smallest `VAL_METRIC`.

    Args:
        config: the whole resolved configuration; `workspace` says how often each thing is due.
        state: the training. `state.best` is kept up to date.
        val_windows: windows of the held-out episodes; there may be none.
        env_runner: rolls the policy out; None for a task without a simulator.
        train_seeds: env seeds that training demonstrations begin from.
        run_dir: receives rollouts, videos and checkpoints.
        about: further entries of checkpoints.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        val_windows: WindowDataset,
        env_runner: EnvRunner | None,
        train_seeds: Sequence[int],
        run_dir: Path,
        logger: Logger,
        about: Mapping[str, Any],
    ) -> None:
        self.config, self.state, self.val_windows = config, state, val_windows
        self.env_runner, self.train_seeds = env_runner, train_seeds
        self.run_dir, self.logger, self.about = run_dir, logger, about
        if env_runner is None and not len(val_windows):
            log.warning(
                "Neither a simulator nor a validation window can tell which checkpoint is best, so only last.pt is "
                "kept. Set dataset.val_ratio=0.02 to hold episodes out."
            )

    def due(self, what: str) -> bool:
        """Whether `what` is due at this step."""
        return due(what, self.state.step, self.config["workspace"])

    def assess(self) -> None:
        """Validates and rolls out, if they are due. Training does not depend on it."""
        if self.due("validate") or self.due("rollout"):
            self.state.check_finite(self.run_dir)
        if self.due("validate") and len(self.val_windows):
            self._validate()
        if self.due("rollout") and self.env_runner is not None:
            self._roll_out(self.env_runner)

    @torch.no_grad()
    def _validate(self) -> None:
        """Logs loss and action error on held-out episodes, with the same noise every time."""
        step, start = self.state.step, time.perf_counter()
        batch_size, seed = self.config["workspace"]["batch_size"], self.config["seed"]
        metrics = _validation(self.state.ema.model, self.val_windows, batch_size, seed)
        self.logger.log(step, {**metrics, "time/validate_s": time.perf_counter() - start})
        if self.env_runner is None and distributed.writes():
            mse = metrics[VAL_METRIC]
            self.keep_if_best(f"{mse:.4g}", {"score": -mse, "metric": VAL_METRIC})
            log.info("step %d: %s %.4g", step, VAL_METRIC, mse)

    def _roll_out(self, env_runner: EnvRunner) -> None:
        """Runs episodes from the test seeds and from the training seeds."""
        step, policy, start = self.state.step, self.state.ema.model, time.perf_counter()
        if not sys.stderr.isatty():  # no bar will tell
            log.info("step %d: rolling out %s", step, counted(len(env_runner.seeds), "episode"))
        test = env_runner.run(policy, policy.device)
        train = env_runner.run_train(policy, policy.device, self.train_seeds)
        if not distributed.writes():
            return
        metrics = metrics_of(test, train) | {"time/rollout_s": time.perf_counter() - start}
        videos = save_rollouts(self.run_dir, step, test, train)
        self.keep_if_best(f"{test.score.value:.3f}", named("score", test.score))
        self.logger.log(step, metrics)
        self.logger.log_episodes(step, [e.row() for e in test.episodes], videos)
        log.info(
            "step %d: score %s, success %s on seeds %d-%d",
            step, text_of(test.score), text_of(test.success, True), env_runner.seeds[0], env_runner.seeds[-1],
        )  # fmt: skip

    def may_take_long(self) -> bool:
        """Whether this step's assessment, or its checkpoint, may take longer than a training step."""
        last = self.config["workspace"]["num_steps"]
        return any(map(self.due, ("validate", "rollout", "checkpoint"))) or self.state.step in (1, last)

    def worth_saving(self) -> bool:
        """Whether last.pt should be written now: from the first step on, the directory is this run's."""
        step, last = self.state.step, self.config["workspace"]["num_steps"]
        periodic = self.due("checkpoint") and self.state.saving_pays()
        return periodic or self.due("rollout") or step in (1, last)

    def keep_if_best(self, value: str, scores: dict[str, Any]) -> None:
        """Writes best-<step>-<value>.pt if `scores["score"]`, the larger the better, is among the best so far."""
        state = self.state
        # Rank this step among the best, earlier steps first if scores are equal.
        entry = {"step": state.step, "file": f"best-{state.step:06d}-{value}.pt", **scores}
        others = [e for e in state.best if e["step"] != state.step]  # an assessment that a signal cut short is repeated
        ranked = sorted([*others, entry], key=lambda e: (-e["score"], e["step"]))[: self.config["workspace"]["n_best"]]
        if entry in ranked:
            saved = {
                "step": state.step,
                "score": entry["score"],
                "ema": state.ema.state_dict(),
                "n_threads": torch.get_num_threads(),
                **self.about,
            }
            checkpoint.save(self.run_dir / "checkpoints" / entry["file"], saved)
        state.best = ranked
        best = {key: number for key, number in ranked[0].items() if key != "file"}
        self.logger.summarize({"best": best, "last": {"step": state.step, **scores}})


def facts_of(data: Demonstrations, train_windows: WindowDataset, val_windows: WindowDataset) -> str:
    """Describes the training data and the validation data in a line."""
    return (
        f"{' + '.join(map(str, data.paths))}, {len(train_windows)} training windows of "
        f"{counted(len(data.train_episodes), 'episode')}, {len(val_windows)} validation windows of "
        f"{counted(len(data.split.val), 'episode')}"
    )


def _validation(policy: DiffusionPolicy, windows: WindowDataset, batch_size: int, seed: int) -> dict[str, float]:
    """val/loss of up to 512 windows, and the mean squared error of sampled actions, normalised, on up to 64."""
    device = policy.device
    generator = torch.Generator(device).manual_seed(seed)
    index = _spread(len(windows), MAX_VAL_WINDOWS)
    parts = Progress(index.split(batch_size), desc="validation", unit="batch", leave=False)
    shares = ((part[distributed.own_rows(len(part))], len(part)) for part in parts)
    losses = [policy.loss(prepare(windows.gather(own), device), generator) * n for own, n in shares]
    loss = distributed.mean(torch.stack(losses).sum()) / len(index)
    batch = prepare(windows.gather(_spread(len(windows), MAX_SAMPLED_WINDOWS)), device)
    sampled = policy.sample(policy.condition(batch["obs"]), generator)
    check_finite(sampled, policy)
    return {
        "val/loss": loss.item(),
        VAL_METRIC: (sampled - batch["action"]).square().mean().item(),
    }


def _spread(n: int, most: int) -> torch.Tensor:
    """At most `most` of n indices, evenly spread, or a few more, so that all processes have equally many."""
    count = -(-min(most, n) // distributed.WORLD) * distributed.WORLD
    return torch.linspace(0, n - 1, count).long()

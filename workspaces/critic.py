"""Lets a policy practise and trains a critic that chooses among its plans. A killed run resumes to the bit."""

import logging
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dp import limits
from dp.files import differing, write_atomically, write_bytes, write_json
from dp.guidance import Decision, Practice, ValueNetwork, view_of
from dp.guidance.value import FILE, digest_of
from dp.progress import Progress
from dp.rollouts.runner import EnvRunner, EpisodeResult
from workspaces import build, command, record
from workspaces.base import Config, Workspace, default_run_dir
from workspaces.evaluate import load_policy
from workspaces.foreign import read_arrays, read_settings
from workspaces.settings import groups_with
from workspaces.signals import Signals, StopNow
from workspaces.trust import packages_of

log = logging.getLogger(__name__)

SHARD = 50
"""Episodes of practice that are saved at once."""

HELD_OUT = 0.1
"""Share of the decisions, the last ones, on which the critic is tested."""

CLIP = 0.99
"""Quantile of the costs above which all are alike: how bad the worst plans are is no use to anybody."""


class Lessons(NamedTuple):
    """S decisions: the features that the encoder computed (S, To, Do), the plans (S, n, T, Da) in raw units, and their
    costs (S, n), nan where they are unknown."""

    cond: Tensor
    plans: Tensor
    costs: Tensor


class CriticWorkspace(Workspace):
    """One critic: lessons/*.npz, and critic.safetensors.

    Args:
        config: the composed configuration, with `checkpoint`. All else about the policy comes from there.
        n_episodes, start_seed: of the practice; None: from the middle of the task's seeds for demonstrations on.
        n_plans: tried at each decision.
        num_steps, batch_size, lr, weight_decay: of the training, with one cycle of the learning rate.
        width, depth: of the network.

    Raises ValueError for unusable settings.
    """

    verb = "critic"
    resolves: ClassVar[bool] = False

    def __init__(
        self,
        config: Config,
        n_episodes: limits.Positive,
        start_seed: limits.EnvSeed | None,
        n_plans: limits.WindowSteps,
        num_steps: limits.Positive,
        batch_size: limits.Width,
        lr: limits.Rate,
        weight_decay: limits.Rate,
        width: limits.Width,
        depth: limits.Width,
    ) -> None:
        super().__init__(config)
        if config["checkpoint"] is None:
            raise ValueError("set checkpoint=PATH: a critic learns to choose among the plans of a policy")
        loaded = load_policy(config, "auto", self.device)
        self.policy, self.config = loaded.policy, loaded.config
        task = build.task(self.config)
        self.packages = task.packages
        seeds = task.demonstration_seeds
        start_seed = seeds[len(seeds) // 2] if start_seed is None else start_seed
        if start_seed not in seeds or start_seed + n_episodes - 1 not in seeds:
            raise ValueError(
                f"workspace.start_seed={start_seed} with n_episodes={n_episodes}, expected seeds from {seeds[0]} to "
                f"{seeds[-1]}: the task {task.name} keeps others for tests"
            )
        self.seeds = range(start_seed, start_seed + n_episodes)
        self.practice = Practice(n_plans, self.policy.n_action_steps, task.simulator_critic)
        runner = build.env_runner(self.config, self.practice)
        if runner is None:
            raise ValueError(f"task {task.name} has no simulator (task.env=null): there is nothing to practise in")
        self.env_runner: EnvRunner = runner
        self.num_steps, self.batch_size, self.lr, self.weight_decay = num_steps, batch_size, lr, weight_decay
        self.width, self.depth = width, depth
        self.signals = Signals()
        self.logger: Any = None
        if self.config["run_dir"] is None:
            self.config["name"] += "-critic"
            self.run_dir = default_run_dir(self.config)

    def run(self) -> float:
        """Returns how much of the costs' variance the critic explains on decisions that it was not trained on."""
        self.use_threads(self.config["n_threads"])
        self.take_run_dir()
        self._check_settings()
        self.begin_run()
        self.logger = build.logger(self.config, self, "critic")
        self.logger.truncate(0)
        with self.signals:
            try:
                network, self.score = self._train(self._practise())
            except StopNow:
                again = command.again(*_without_run_dir(record.overrides()), command.override("run_dir", self.run_dir))
                raise self.signals.interrupted(f"{self.run_dir} keeps the practice. To go on: {again}") from None
        write_bytes(self.run_dir / FILE, network.to_bytes(view_of(self.policy), digest_of(self.policy)))
        trust = command.trust(packages_of(self.config))
        use = ("guidance=best_of_n", command.override("guidance.path", self.run_dir), *trust)
        policy = command.override("checkpoint", self.config["checkpoint"])
        log.info("%s", self.run_dir / FILE)
        log.info("evaluate with it: %s", command.run("workspace=evaluate", policy, *use))
        return self.score

    def _practise(self) -> Lessons:
        """Runs what is missing of the practice, and returns all of it."""
        files = [self.run_dir / "lessons" / f"{first}.npz" for first in self.seeds[::SHARD]]
        with Progress(total=len(self.seeds), desc="practice", unit="episode", leave=False) as bar:
            for number, file in enumerate(files):
                seeds = self.seeds[number * SHARD : (number + 1) * SHARD]
                if not file.is_file():
                    arrays = self._lessons_of(seeds)
                    write_atomically(file, partial(_save, arrays=arrays))
                bar.update(len(seeds))
        shards = [_read(file) for file in files]
        return Lessons(*(torch.from_numpy(np.concatenate([s[name] for s in shards])) for name in Lessons._fields))

    def _check_settings(self) -> None:
        """Raises ValueError if the run directory holds the practice of another policy, or another kind of practice."""
        file = self.run_dir / "lessons" / "settings.json"
        here = {
            **{key: self.config[key] for key in groups_with("sampling")},
            "max_steps": self.env_runner.max_steps,
            "n_plans": self.practice.n,
            "start_seed": self.seeds[0],
            "weights": digest_of(self.policy),
        }
        there = read_settings(file) if file.is_file() else here
        if others := differing(there, here):
            raise ValueError(f"{self.run_dir} holds other practice ({others}): set another run_dir")
        write_json(file, here)

    def _lessons_of(self, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        self.practice.decisions.clear()
        with self.signals.interrupting():
            self.signals.check()
            episodes = {e.seed: e for e in self.env_runner.stream(self.policy, self.device, seeds)}
        rows = [row for seed in seeds for row in self._with_outcomes(episodes[seed])]
        return {name: np.stack([getattr(row, name) for row in rows]) for name in Lessons._fields}

    def _with_outcomes(self, episode: EpisodeResult) -> list[Decision]:
        """The decisions of an episode. If their costs are unknown, the executed plan's is what followed it: control
        steps to the solution, or as many as an episode has if there was none; in a task without success, minus the
        sum of rewards."""
        decisions = self.practice.decisions[episode.seed]
        if self.practice.sees_state:
            return decisions
        most = self.env_runner.max_steps
        for number, decision in enumerate(decisions):
            begun = number * self.policy.n_action_steps
            if episode.success is None:
                cost = -sum(episode.rewards[begun:])
            else:
                cost = (
                    episode.length - begun if episode.success else most if isinstance(most, int) else most[episode.seed]
                )
            decision.costs[decision.chosen] = cost
        return decisions

    def _train(self, lessons: Lessons) -> tuple[ValueNetwork, float]:
        cond, plans, costs = lessons.cond.float(), lessons.plans.float(), lessons.costs.float()
        costs = costs.clamp(max=float(np.nanquantile(costs.numpy(), CLIP)))
        n_train = len(cond) - max(1, int(HELD_OUT * len(cond)))
        if n_train < 2 or costs[:n_train].isfinite().sum() < 2:
            raise ValueError(
                f"{len(cond)} decisions with {int(costs.isfinite().sum())} known costs are too few to learn from: "
                "set a larger workspace.n_episodes"
            )
        rest = (cond[n_train:], plans[n_train:], costs[n_train:])
        log.info("%d decisions to train on, %d to test on, %d plans each", n_train, len(cond) - n_train, plans.shape[1])
        torch.manual_seed(self.config["seed"])
        network = ValueNetwork(cond[0].numel(), plans[0, 0].numel(), self.width, self.depth)
        network.standardize_with(cond[:n_train], plans[:n_train], costs[:n_train])
        optimizer = torch.optim.AdamW(network.parameters(), self.lr, weight_decay=self.weight_decay)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, self.num_steps)
        period, explained = max(1, self.num_steps // 10), 0.0
        with Progress(total=self.num_steps, desc="critic", unit="step", leave=False) as bar:
            for step in range(1, self.num_steps + 1):
                self.signals.check()
                rows = torch.randint(n_train, (self.batch_size,))
                loss = network.loss(cond[rows], plans[rows], costs[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                cycle.step()
                bar.update()
                if step % period == 0 or step == self.num_steps:
                    explained = explained_share(network, *rest)
                    metrics = {"critic/loss": loss.item(), "critic/explained": explained}
                    self.logger.log(step, metrics)
                    log.info(
                        "step %d/%d  loss %.4f  explains %.0f %%", step, self.num_steps, loss.item(), 100 * explained
                    )
        network.check()
        self._say_gain(network, *rest)
        return network.eval(), explained

    def _say_gain(self, network: ValueNetwork, cond: Tensor, plans: Tensor, costs: Tensor) -> None:
        if plans.shape[1] == 1:
            return
        with torch.no_grad():
            chosen = network(cond, plans).argmin(1, keepdim=True)
        log.info(
            "costs of a decision, mean: %.1f by the first plan, %.1f by the critic's choice, %.1f by the best of %d",
            costs[:, 0].mean(), costs.gather(1, chosen).mean(), costs.min(1).values.mean(), plans.shape[1],
        )  # fmt: skip

    def close(self, failed: bool) -> None:
        self.env_runner.close()
        if self.logger is not None:
            self.logger.close(failed)


@torch.no_grad()
def explained_share(network: ValueNetwork, cond: Tensor, plans: Tensor, costs: Tensor) -> float:
    """Share of the variance of the costs, between the plans of a decision if there are several, that the network
    explains; 0 where there is none."""
    predicted, among = network(cond, plans), plans.shape[1] > 1
    if among:
        predicted, costs = predicted - predicted.mean(1, keepdim=True), costs - costs.mean(1, keepdim=True)
    known = ~costs.isnan()
    error, total = (predicted - costs)[known].square().sum(), (costs[known] - costs[known].mean()).square().sum()
    return float(1 - error / total) if total > 1e-6 * known.sum() else 0.0


def _save(file: IO[bytes], arrays: dict[str, np.ndarray]) -> None:
    np.savez(file, **arrays)  # type: ignore[arg-type]


def _without_run_dir(overrides: Iterable[str]) -> list[str]:
    return [override for override in overrides if not override.startswith("run_dir=")]


def _read(file: Path) -> dict[str, np.ndarray]:
    """The lessons in `file`. Raises ValueError if they are damaged."""
    try:
        arrays = read_arrays(file)
        cond, plans, costs = (arrays[name] for name in Lessons._fields)
        if any(array.dtype.kind != "f" for array in (cond, plans, costs)) or costs.shape != plans.shape[:2] or (
            len(cond), cond.ndim, plans.ndim
        ) != (len(plans), 3, 4):  # fmt: skip
            raise ValueError(f"arrays of shapes {cond.shape}, {plans.shape} and {costs.shape}")
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and repeat the command") from None
    return arrays

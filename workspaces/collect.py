"""Makes demonstrations and stores those that pass a filter. The same command resumes it after a kill at any moment."""

import inspect
import logging
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, TypedDict

from dp import limits
from dp.data.filling import Made, fill, given_up
from dp.data.recording import STORE, DemonstrationStore
from dp.guidance import Unguided
from dp.processes import N_CORES, in_processes
from dp.rollouts.runner import EnvRunner
from dp.tasks.demonstration import Collector, Demonstration, Finished
from workspaces import build, command
from workspaces.base import Config, Workspace
from workspaces.checkpoint import find
from workspaces.config import CONFIGS
from workspaces.evaluate import Loaded, load_policy
from workspaces.load import MOVED
from workspaces.record import overrides
from workspaces.resume import recorded
from workspaces.settings import Role, flatten, group, groups_with, key
from workspaces.signals import Signals, StopNow

log = logging.getLogger(__name__)


class FilterSettings(TypedDict, total=False):
    """Arguments of `Filter`."""

    success_only: bool | None
    min_final: Mapping[str, float] | None
    min_final_coverage: limits.Share | None
    max_length: limits.Positive | None


class CollectWorkspace(Workspace):
    """Fills a store of demonstrations up to `n_episodes`. Its content does not depend on `n_workers`.

    Args:
        config: the composed configuration. `collector` is a `dp.tasks.demonstration.Collector`, or,
            with `checkpoint`, the rollouts of a policy.
        path: of the store; None: collected.zarr in the run directory if that is given, else in data/.
        n_episodes: size of the store at the end.
        start_seed: of the first; the others follow. None: see `Task.first_seed`.
        n_workers: processes; 0 works in this one; auto: one per core.
        filter: the arguments of `Filter`. A collector that `chooses` overrides `success_only`.

    Raises ValueError for unusable settings.
    """

    verb = "collect"
    computes: ClassVar[bool] = False
    resolves: ClassVar[bool] = False

    def __init__(
        self,
        config: Config,
        path: str | None,
        n_episodes: limits.Positive,
        start_seed: limits.EnvSeed | None,
        n_workers: Literal["auto"] | limits.Workers,
        filter: FilterSettings,
    ) -> None:
        super().__init__(config)
        loaded = load_policy(config, "auto", self.device) if config["checkpoint"] is not None else None
        if loaded is None:
            build.check(build.resolve(config))
        self.task = build.task(loaded.config if loaded is not None else config)
        self.seeds = self.task.demonstration_seeds
        self.n_workers = N_CORES if n_workers == "auto" else n_workers
        folder = Path(config["run_dir"] or "data")
        self.path = Path(path).expanduser() if path else folder / STORE
        self.n_episodes, self.start_seed = n_episodes, self.task.first_seed(start_seed, "workspace.start_seed")
        self.filter = Filter(**filter)
        self.settings = flatten({"collector": config["collector"], "workspace": {"filter": filter}})
        self.settings |= {"workspace.start_seed": self.start_seed, "task": self.task.demonstrated}
        self.signals = Signals()
        self._runner: EnvRunner | None = None
        record = self.task.recorder() if loaded is not None else None  # an error without a simulator
        collector = build.collector(config, self.task, self.n_workers, record)
        if getattr(collector, "chooses", False):
            self.filter = replace(self.filter, success_only=None)
        self._collector = collector
        by_policy = "policy" in inspect.signature(collector).parameters
        if by_policy != (loaded is not None):
            raise ValueError(
                "this collector runs a policy: set checkpoint=PATH"
                if by_policy
                else "this collector runs no policy: leave checkpoint out, or set collector=checkpoint or "
                "collector=takeover"
            )
        self._make: Callable[[Iterable[int]], Made] = partial(_in_order, collector, self.n_workers)
        if loaded is not None:
            self._make = self._rollouts(collector, loaded)
        self.source = "checkpoint" if isinstance(collector, partial) else type(collector).__name__.lower()

    def _rollouts(self, collector: Callable[..., Made], loaded: Loaded) -> Callable[[Iterable[int]], Made]:
        self.use_threads(loaded.config["n_threads"])
        settings = {**loaded.config["env_runner"], "n_workers": self.n_workers}
        self._runner = build.env_runner({**loaded.config, "env_runner": settings})
        assert self._runner is not None
        roles: list[Role] = ["sampling"]
        if not isinstance(self._runner.guidance, Unguided):  # stores of before say nothing
            roles.append("guidance")
        self.settings |= flatten(
            {key: loaded.config[key] for key in groups_with(*roles)}
            | {key: loaded.about[key] for key in ("checkpoint", "step")}
            | {"env_runner.max_steps": settings["max_steps"]}
        )
        return partial(collector, self._runner, loaded.policy, self.device)

    def run(self) -> None:
        if self.config["run_dir"] is not None:
            self.take_run_dir()
            self.begin_run()
        with self.signals, DemonstrationStore(self.path, self.settings, *self.task.columns(), aliases=MOVED) as store:
            try:
                fill(store, self.n_episodes, self._made(store), self.source, self.filter.objection)
            except Finished as end:
                log.info("%s", end)
            except StopNow:
                self._stop(store)
        log.info("%s", self._summary())

    def _made(self, store: DemonstrationStore) -> Made:
        """What the collector makes of the seeds after the last one in the store. A signal interrupts its work."""
        first = self.start_seed if store.last_seed is None else store.last_seed + 1
        with closing(self._make(range(first, self.seeds.stop))) as made:
            while True:
                if hasattr(self._collector, "n_stored"):
                    self._collector.n_stored = store.n_episodes
                with self.signals.interrupting():
                    self.signals.check()
                    item = next(made, None)
                if item is None:
                    return
                yield item

    def _stop(self, store: DemonstrationStore) -> None:
        command = shlex.join(["python", *sys.argv])
        raise self.signals.interrupted(f"{self.path} holds {store.n_episodes} episodes. To go on: {command}") from None

    def _summary(self) -> str:
        megabytes = sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file()) / 1e6
        rows = [f"  {name}: {value}" for name, value in self.task.statistics(self.path).items()]
        train = command.run(*self._training(), command.override("dataset.path", self.path))
        return "\n".join([f"{self.path}, {megabytes:.1f} MB", *rows, f"train on them: {train}"])

    def _training(self) -> list[str]:
        """The overrides that train on the task: those of the checkpoint's training, or an experiment for it."""
        typed = overrides()
        if self.config["checkpoint"] is not None:
            typed = recorded(find(self.config["checkpoint"]).parent.parent, [])
        chosen = [text for text in typed if group(text) in ("experiment", "task")]
        if any(group(text) == "experiment" for text in chosen):
            return chosen
        task = next((text.partition("=")[2] for text in chosen if key(text) == "task"), self.task.name)
        return [_experiment_for(task), *(text for text in chosen if key(text) != "task")]

    def close(self, failed: bool) -> None:
        if self._runner is not None:
            self._runner.close()


@dataclass(frozen=True)
class Filter:
    """Selects the demonstrations to store. None switches a condition off.

    Args:
        success_only: whether the task must be solved.
        min_final: named quantity of the environment (`Env.info`) -> its least value after the last action.
        min_final_coverage: 0..1; an earlier name of min_final={coverage: ...}.
        max_length: control steps.
    """

    success_only: bool | None = None
    min_final: Mapping[str, float] | None = None
    min_final_coverage: float | None = None
    max_length: int | None = None

    @property
    def least(self) -> dict[str, float]:
        """Named quantity -> its least value at the end."""
        earlier = {} if self.min_final_coverage is None else {"coverage": self.min_final_coverage}
        return {**earlier, **(self.min_final or {})}

    def objection(self, demonstration: Demonstration | str | None) -> str | None:
        """Reason not to store it, or None. Raises ValueError if it lacks a quantity of `min_final`."""
        if isinstance(demonstration, str | None):
            return given_up(demonstration)
        if self.success_only and not demonstration.success:
            return "no success"
        final = demonstration.final()
        for name, least in self.least.items():
            if name not in final:
                raise ValueError(f"workspace.filter.min_final has {name}, expected some of {sorted(final)}")
            if not final[name] >= least:
                return f"final {name} below {least}"
        if self.max_length is not None and len(demonstration) > self.max_length:
            return f"longer than {self.max_length} steps"
        return None


def _experiment_for(task: str) -> str:
    """The override that trains on the choice `task` of its group: an experiment, preferably a small one."""
    experiments = sorted((CONFIGS / "experiment").glob("*.yaml"))
    fitting = [file.stem for file in experiments if f"override /task: {task}\n" in file.read_text()]
    small = [name for name in fitting if name.endswith("_small")]
    return f"+experiment={(small + fitting)[0]}" if fitting else f"task={task}"


def _in_order(collector: Collector, n_workers: int, seeds: Iterable[int]) -> Made:
    return in_processes(collector, seeds, 0 if getattr(collector, "in_this_process", False) else n_workers)

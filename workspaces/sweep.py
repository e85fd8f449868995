"""Many runs from one command: their directories, their states, and the work that is left.

The directories are the truth. A sweep launches the jobs whose directories are not finished and looks again, so the same
command resumes it, whatever killed a job, a worker or the sweep itself.
"""

import contextlib
import hashlib
import itertools
import os
import re
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from tabulate import tabulate

from dp.distributed import WORLD
from dp.files import write_json
from workspaces import command, record
from workspaces.command import quoted
from workspaces.errors import explain
from workspaces.foreign import parse_json, read_json, read_text
from workspaces.gpus import check_launcher, device_of
from workspaces.schema import COMPONENT, Maybe, Schema, check
from workspaces.settings import group, groups_with, role
from workspaces.trust import packages_of

FILE = "sweep.json"

SCHEMA: Schema = {"jobs": [{"dir": COMPONENT, "verb": Maybe(str), "overrides": Maybe([str]), "needs": Maybe(str)}]}
"""Fields of the manifest."""

MAX_DEATHS = 3
"""Most launches of a job that keeps being killed, in one sweep."""


@dataclass(frozen=True)
class Job:
    """One run. `name`: its directory, under the sweep's; `needs`: the job whose checkpoint it evaluates."""

    name: str
    verb: str
    overrides: tuple[str, ...]
    needs: str | None = None

    @property
    def identity(self) -> frozenset[str]:
        return frozenset(o for o in self.overrides if _tells(o))


class Sweep:
    """A directory of jobs. A context manager: leaving it reports their states and fails unless all have finished.

    Args:
        config: as Hydra composed it without the values that are swept.
        loader: Hydra's.
        launch: runs the jobs with the given overrides, numbered from the given number on; returns when it is through.
        params: overrides from a file, `arguments`: from the command line, which has the last word.
        along: override of a swept key -> overrides that go along with it, except those of keys that are set otherwise.
        status_s: seconds between two status tables.

    Raises ValueError for overrides that do not suit a sweep.
    """

    in_this_process = False

    def __init__(
        self,
        config: DictConfig,
        loader: ConfigLoader,
        launch: Callable[[list[list[str]], int], None],
        params: Mapping[str, str],
        along: Mapping[str, str],
        arguments: Sequence[str],
        status_s: float,
    ) -> None:
        if WORLD > 1:
            raise ValueError("torchrun starts one training, not a sweep: type this command without torchrun")
        typed = [*(f"{key}={value}" for key, value in params.items()), *arguments]
        overrides = {o.get_key_element(): o for o in OverridesParser.create(loader).parse_overrides(typed)}
        overrides.pop("+sweep", None)
        if "run_dir" in overrides:
            raise ValueError("run_dir names one directory, but a sweep needs many: set hydra.sweep.dir=DIR instead")
        self.swept = {key: o for key, o in overrides.items() if o.is_sweep_override()}
        fixed = {key: o for key, o in overrides.items() if key not in self.swept}
        self.fixed = {key: f"{key}={o.get_value_element_as_str()}" for key, o in fixed.items()}
        self.verb = config.hydra.runtime.choices.workspace
        self.dir = self._directory(config)
        with read_write(config), open_dict(config):
            config.hydra.sweep.dir = str(self.dir)  # for launchers that keep something there
        composed = cast(dict[str, Any], OmegaConf.to_container(config))
        self.launcher, self.device = composed.pop("hydra")["launcher"], composed["device"]
        check_launcher(self.launcher, self.device, torch.cuda.device_count())
        self._has_env = composed["task"].get("env") is not None
        self.trusted = packages_of(composed)  # the user composed them: their checkpoints are his
        self._launch, self._status_s, self._along = launch, status_s, along
        self.jobs: list[Job] = []
        self._deaths: Counter[Job] = Counter()
        self._settled: set[Job] = set()  # failed, or killed too often, in this process
        self._begun, self._over = time.time(), threading.Event()
        self._reporter = threading.Thread(target=self._report_now_and_then, daemon=True)

    def grid(self) -> list[list[Job]]:
        """Every combination of the values, in phases: jobs need only those of earlier phases.

        Values that only sampling depends on are evaluations of one training, unless there is nothing to evaluate in:
        then they decide how a training is validated.
        """
        for override in self.swept.values():
            if not override.is_discrete_sweep():
                raise ValueError(f"{override.input_line} is not a list of values: set one, or use hydra/sweeper=optuna")
        inference = {key: o for key, o in self.swept.items() if role(key) in ("sampling", "guidance")}
        if self.verb != "train" or not inference or not self._has_env:
            return [[self.job(values) for values in _combinations(self.swept)]]
        others = {key: o for key, o in self.swept.items() if key not in inference}
        training = [self.job(values, prefix="train") for values in _combinations(others)]
        return [training, [self._evaluation(job, v) for job in training for v in _combinations(inference)]]

    def job(self, values: Mapping[str, str], prefix: str = "") -> Job:
        """The job with these values of the swept keys."""
        swept = [f"{key}={value}" for key, value in values.items()]
        along = [override for one in swept for override in shlex.split(self._along.get(one, ""))]
        tiny = "+debug" in self.fixed  # it sets what nobody typed
        added = [o for o in along if not tiny and o.partition("=")[0] not in {*self.fixed, *values}]
        return Job(_name(values, prefix), self.verb, (*self.fixed.values(), *swept, *added, *self._group()))

    def _evaluation(self, trained: Job, values: Mapping[str, str]) -> Job:
        taken = groups_with("protocol", "guidance", "speed", "place", "output")
        fixed = [override for key, override in self.fixed.items() if group(key) in taken]
        checkpoint = self.dir / trained.name / "checkpoints" / "last.pt"
        policy = ["workspace=evaluate", f"checkpoint={quoted(str(checkpoint))}", *command.trust(self.trusted)]
        overrides = [*policy, *fixed, *self._group()]
        swept = [f"{key}={value}" for key, value in values.items()]
        name = _name(values, trained.name.removeprefix("train").removeprefix("+"))
        return Job(name, "evaluate", (*overrides, *swept), needs=trained.name)

    def _group(self) -> list[str]:
        given = "logger.group" in self.fixed or "WANDB_RUN_GROUP" in os.environ
        return [] if given else [f"logger.group={quoted(self.dir.name)}"]

    def _directory(self, config: DictConfig) -> Path:
        if any(o.startswith("hydra.sweep.dir=") for o in config.hydra.overrides.hydra):
            return Path(config.hydra.sweep.dir)
        telling = sorted(
            o for o in self.fixed.values() if _tells(o) and not o.startswith(("+experiment=", "workspace="))
        )
        name = config.name if self.verb == "train" else self.verb
        parts = [name, "+".join(_short(key) for key in self.swept), _digest(telling) if telling else ""]
        return Path("multirun") / "-".join(filter(None, parts))

    def __enter__(self) -> "Sweep":
        Sweep.in_this_process = True
        self.dir.mkdir(parents=True, exist_ok=True)
        self._reporter.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._reporter.join()
        Sweep.in_this_process = False
        if self.jobs:
            self.say("\n".join([self.status(whole=True), *self._conclusion()]))
        unfinished = [job for job in self.jobs if self.state(job) != "finished"]
        if unfinished and error is None:
            again = shlex.join(["python", *sys.argv])
            raise ValueError(f"{len(unfinished)} of {len(self.jobs)} jobs have not finished. To go on: {again}")

    def _conclusion(self) -> list[str]:
        """The best job and what to do next, once there is a score."""
        scores = {job.name: score for job in self.jobs if (score := self.score(job)) is not None}
        if not scores:
            return []
        best = max(scores, key=lambda name: scores[name])
        report = command.run("workspace=report", command.override("runs", self.dir), *command.trust(self.trusted))
        return [f"\nbest score {scores[best]:.3f}: {self.dir / best}", f"report: {report}"]

    def add(self, jobs: Sequence[Job]) -> None:
        """Adds jobs to the manifest. Raises ValueError if the directory of one holds another run."""
        for job in jobs:
            held = self._record(job)
            if held is not None:
                there = Job(job.name, job.verb, tuple(held["overrides"]))
                if there.identity != job.identity:
                    differing = ", ".join(sorted(there.identity ^ job.identity))
                    raise ValueError(f"{self.dir / job.name} holds another run ({differing}): set hydra.sweep.dir=DIR")
        self.jobs += jobs
        names = [job.name for job in self.jobs]
        assert len(set(names)) == len(names)
        earlier = self._manifest()
        described = [
            {"dir": job.name, "verb": job.verb, "overrides": list(job.overrides), "needs": job.needs}
            for job in self.jobs
        ]
        kept = [entry for entry in earlier if entry["dir"] not in names]
        write_json(self.dir / FILE, {"command": shlex.join(sys.argv), "jobs": [*kept, *described]})

    def _manifest(self) -> list[dict[str, Any]]:
        """The jobs of earlier commands. None if the file is damaged: the directories are the truth."""
        try:
            return read_manifest(self.dir / FILE)
        except FileNotFoundError:
            return []
        except ValueError as error:
            self.say(f"{self.dir / FILE} is damaged ({error}): writing it anew with the jobs of this command")
            return []

    def run(self, phases: Sequence[Sequence[Job]]) -> None:
        """Runs all jobs that are not finished, phase by phase."""
        self.add([job for phase in phases for job in phase])
        for phase in phases:
            self.run_jobs(phase)

    def run_jobs(self, jobs: Sequence[Job]) -> None:
        """Runs jobs that do not depend on each other."""
        while unfinished := [job for job in jobs if self._to_be_done(job)]:
            free = [job for job in unfinished if self.state(job) != "running"]
            if free:
                self._attempt(free)
            else:  # left over by a sweep that was killed: they go on without it
                time.sleep(0.5)

    def state(self, job: Job) -> record.State:
        return record.state_of(self.dir / job.name)

    def score(self, job: Job) -> float | None:
        """Score of the job; None if it has not finished."""
        held = self._record(job)
        return held["score"] if held is not None and held["state"] == "finished" else None

    def _to_be_done(self, job: Job) -> bool:
        if job in self._settled or self.state(job) == "finished":
            return False
        return job.needs is None or record.state_of(self.dir / job.needs) == "finished"

    def _attempt(self, jobs: Sequence[Job]) -> None:
        before = {job: self._record(job) for job in jobs}
        reason = "no reason given"
        try:
            typed = [self._typed(job) + self._gpu(number) for number, job in enumerate(jobs)]
            self._launch(typed, self.jobs.index(jobs[0]))
        except Exception as error:  # a worker died, or what runs them: the directories tell which jobs it hit
            reason = explain(error)
            self.say(f"the launcher stopped ({reason}): checking which jobs are left")
        # A job whose record changed has run. It is settled if it failed, or was killed too often.
        run = [job for job in jobs if self._record(job) != before[job]]
        for job in run:
            state = self.state(job)
            self._deaths[job] += state == "interrupted"
            if state == "failed" or self._deaths[job] >= MAX_DEATHS:
                self._settled.add(job)
        if not run and not any(self.state(job) == "running" for job in jobs):
            raise ValueError(f"the launcher ran none of {len(jobs)} jobs: {reason}")

    def _gpu(self, number: int) -> list[str]:
        return device_of(number, self.launcher, self.device, torch.cuda.device_count())

    def _typed(self, job: Job) -> list[str]:
        """Overrides of the job, for a launcher."""
        where = [f"hydra.sweep.dir={quoted(str(self.dir.absolute()))}", f"hydra.sweep.subdir={quoted(job.name)}"]
        return [*job.overrides, *where, "hydra.mode=MULTIRUN"]

    def _record(self, job: Job) -> dict[str, Any] | None:
        """Content of the job's run.json. None if it is damaged: then the job runs again and writes it anew."""
        try:
            return record.read(self.dir / job.name)
        except ValueError:
            return None

    def status(self, whole: bool) -> str:
        """A table of the jobs' states: all of them, or the interesting ones."""
        states = {job: self.state(job) for job in self.jobs}
        counts = ", ".join(f"{n} {state}" for state, n in sorted(Counter(states.values()).items()))
        title = f"\n{self.dir}: {counts} ({(time.time() - self._begun) / 60:.1f} min)"
        shown = [job for job in self.jobs if whole or states[job] not in ("waiting", "finished")]
        rows = [[job.name, states[job], *_progress(self.dir / job.name)] for job in shown]
        table = tabulate(rows, ["job", "state", "step", "score"], disable_numparse=True)
        failed = [job for job in self.jobs if whole and states[job] == "failed"]
        return "\n".join([title, table, *(line for job in failed for line in self._failure(job))])

    def _failure(self, job: Job) -> list[str]:
        reason = (self._record(job) or {}).get("error") or ""
        lines = _lines(self.dir / job.name / "run.log")
        last = [line for line in lines[-6:] if reason not in line]
        return [f"\n{job.name} failed: {reason}", *(f"  {line}" for line in last)]

    def _report_now_and_then(self) -> None:
        while not self._over.wait(self._status_s):
            self.say(self.status(whole=False))

    @staticmethod
    def say(text: str) -> None:
        """Prints a text for the person who watches."""
        print(text, file=sys.stderr, flush=True)


def leave_job(error: Exception) -> None:
    """Ends a failed job of a sweep: records the error in run.json and raises it for the launcher.

    Raises KeyboardInterrupt if a signal meant the whole sweep, because it runs in this process.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if not record.in_use(run_dir) and not record.is_ours(run_dir):  # it did not even begin
        record.begin(run_dir, HydraConfig.get().runtime.choices["workspace"], torch.device("cpu"))
        record.end(run_dir, "failed", error=explain(error))
    if Sweep.in_this_process and _says_interrupted(run_dir):
        raise KeyboardInterrupt
    raise RuntimeError(explain(error)) from None  # other processes can unpickle this one


def _says_interrupted(run_dir: Path) -> bool:
    try:
        return (record.read(run_dir) or {}).get("state") == "interrupted"
    except ValueError:
        return False


def _tells(override: str) -> bool:
    """Whether an override says what a job is, and not only where and how fast it runs.

    Its group decides, so that a sweep keeps its directory: env_runner.n_workers counts, too.
    """
    return role(group(override)) not in ("place", "output", "speed")


def _combinations(swept: Mapping[str, Override]) -> Iterable[dict[str, str]]:
    values = [list(dict.fromkeys(override.sweep_string_iterator())) for override in swept.values()]
    for override, its_values in zip(swept.values(), values, strict=True):
        if not its_values:
            raise ValueError(f"{override.input_line} has no values to sweep over: set one or more, KEY=VALUE,VALUE")
    return [dict(zip(swept, combination, strict=True)) for combination in itertools.product(*values)]


def _name(values: Mapping[str, str], prefix: str) -> str:
    """A directory's name: readable, unique for its values, and valid after `checkpoint=` without quotes."""
    full = "+".join(filter(None, [prefix, *(f"{_short(key)}-{value}" for key, value in values.items())])) or "run"
    clean = re.sub(r"[^\w.+-]", "_", full)
    return clean if clean == full and len(full) <= 120 else f"{clean[:100]}-{_digest([full])}"


def _short(key: str) -> str:
    return key.lstrip("+~").rpartition(".")[2]


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:6]


def _progress(run_dir: Path) -> tuple[str, str]:
    """Step and score, as far as they are known."""
    step, score = "", None
    with contextlib.suppress(ValueError):
        score = (record.read(run_dir) or {}).get("score")
    for line in _lines(run_dir / "metrics.jsonl")[-2:]:  # the last may be half written
        with contextlib.suppress(ValueError, TypeError, KeyError):
            step = f"{parse_json(line, 'metrics.jsonl')['step']:d}"
    return step, "" if score is None else f"{score:.3f}"


def _lines(file: Path) -> list[str]:
    """The lines of a text file; none if it cannot be read."""
    try:
        return read_text(file).splitlines()
    except (OSError, ValueError):
        return []


def read_manifest(file: Path) -> list[dict[str, Any]]:
    """The jobs that sweep.json names. Raises ValueError for a file that is damaged or names other directories."""
    manifest = read_json(file)
    check(manifest, SCHEMA, FILE)
    return manifest["jobs"]

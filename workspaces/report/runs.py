"""Run directories as records: content, state, and the reason if one is left out."""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import HydraException

from dp.tasks import Task
from workspaces import record
from workspaces.base import Config
from workspaces.build import task_of
from workspaces.foreign import MAX_VIDEO_BYTES, parse_json, read_json, read_text, read_yaml
from workspaces.load import migrate
from workspaces.rollouts import disturbances
from workspaces.schema import COUNT, NUMBER, Maybe, Range, Schema, check
from workspaces.settings import groups_with
from workspaces.sweep import FILE as MANIFEST
from workspaces.sweep import read_manifest
from workspaces.trust import CONFIG, plain

DAMAGE = (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, HydraException)
"""Errors of reading a damaged run directory. The schemas raise ValueError and leave little else."""

PARTS = ("checkpoints", "lessons", "media", "rollouts", "wandb")
"""Folders of a run directory: there are no runs in them."""

STEPS_PER_EPISODE = Range(0, 10**7)

ROW: Schema = {"seed": COUNT, "max_reward": NUMBER, "success": (bool, type(None)), "length": STEPS_PER_EPISODE}
"""Fields of an episode's row. Named quantities of the environment at the end have keys that start with FINAL."""

METRICS: Schema = {"step": COUNT, str: Maybe(NUMBER)}
"""A line of metrics.jsonl. A number that was not finite is null."""

EVALUATION: Schema = {
    "protocol": {
        "seeds": [COUNT],
        "max_steps": (STEPS_PER_EPISODE, str),
        **{key: Maybe(str) for key in ("name", "score", "success", "reset", "disturbances")},
    },
    "checkpoint": Maybe(str),
    "step": Maybe(COUNT),
    "inference_ms": Maybe(NUMBER),
    "privileged": Maybe(bool),
    "episodes": [ROW],
}
"""Fields of evaluation.json that a report reads."""

FINAL = "final_"

FIXED = groups_with("identity")
"""Groups of an evaluation's configuration that tell about its training if that is not known itself."""


@dataclass(frozen=True)
class Protocol:
    """A protocol, with which a score must be quoted. Scores under different ones are never averaged.

    task: its name. first, last: env seeds. max_steps: control steps, or words. name: the task's name for it, if any.
        Protocols with equal numbers are equal. disturbances: words for what makes it harder.
    """

    task: str
    first: int
    last: int
    max_steps: int | str
    name: str | None = field(default=None, compare=False)
    disturbances: str = ""

    def __str__(self) -> str:
        steps = f"{self.max_steps} steps" if isinstance(self.max_steps, int) else self.max_steps
        numbers = self.name or f"seeds {self.first}–{self.last}, {steps}"
        return f"{numbers}, {self.disturbances}" if self.disturbances else numbers

    @property
    def n_episodes(self) -> int:
        return self.last - self.first + 1

    @classmethod
    def without_rollouts(cls, task: str) -> "Protocol":
        """The protocol of a training that is validated and never rolled out."""
        return cls(task, 0, -1, 0, "validation only")


class Words(NamedTuple):
    """The metric in words that follow a number, and how a seed makes an initial state."""

    score: str
    success: str
    reset: str


@dataclass(frozen=True)
class Run:
    """One run that can be read.

    config: of the training, for an evaluation with the scheduler and `n_action_steps` that it was made with.
    task: its facts, or no more than its name where its class is not trusted. words: as the run recorded them, else the
    task's.
    metrics: the lines of metrics.jsonl. episodes: test episodes of the evaluation, or of the last rollout.
    checkpoint: file that was evaluated. trained_in: directory of the training, None if it is not known.
    privileged: whether guidance used the environment's true state.
    """

    path: Path
    verb: str
    state: record.State
    record: dict[str, Any]
    config: Config
    metrics: list[dict[str, Any]]
    protocol: Protocol
    task: Task
    words: Words
    episodes: list[dict[str, Any]] = field(default_factory=list)
    inference_ms: float | None = None
    step: int | None = None
    checkpoint: str | None = None
    trained_in: Path | None = None
    privileged: bool = False

    @property
    def replicate(self) -> str:
        """The mark of a run among those of its setting: the training seed, or else the checkpoint."""
        if self.checkpoint is not None and self.trained_in is None and not self.config.get("training"):
            return self.checkpoint
        return f"seed {self.config['seed']}"

    @property
    def ended(self) -> float:
        """End of the run, in seconds since 1970."""
        if self.record.get("ended"):
            return datetime.fromisoformat(self.record["ended"]).timestamp()
        return (self.path / "config.yaml").stat().st_mtime

    def curve(self, key: str) -> dict[int, float]:
        """Step -> value of a metric. If a step was logged twice, its last value counts."""
        return {row["step"]: row[key] for row in self.metrics if row.get(key) is not None}

    def video(self, seed: int) -> Path | None:
        """The video of an episode, if it was recorded."""
        path = self.path / "media" / f"{self.step or 0}-{seed}.mp4"
        linked = path.is_symlink() or path.parent.is_symlink()  # it could show any file of this machine
        return path if not linked and path.is_file() and path.stat().st_size <= MAX_VIDEO_BYTES else None

    @property
    def actions(self) -> Path:
        """The file with the executed actions, which runs of earlier versions lack."""
        return self.path / "rollouts" / f"{self.step or 0}.npz"


class LeftOut(NamedTuple):
    """A directory without a result, and the reason."""

    path: Path
    state: str
    reason: str


@dataclass
class Found:
    """Every run under one directory. Only `finished` ones count. `unfinished` trainings have a curve so far."""

    finished: list[Run] = field(default_factory=list)
    unfinished: list[Run] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def find(root: Path, trusted: Collection[str] = (), key: str = "runs") -> Found:
    """Reads every run in `root`: one run, a directory of runs, a sweep. Raises ValueError, naming `key`, if there is
    none.

    trusted: packages besides ours whose tasks may be imported.
    """
    if not root.is_dir():
        raise ValueError(f"{key}={root}, expected a directory: a run, a directory of runs, or a sweep under multirun/")
    found = Found()
    for path in sorted({*_run_dirs(root), *_jobs(root, found)}):
        _take(path, found, trusted)
    if not (found.finished or found.unfinished or found.left_out):
        raise ValueError(f"{key}={root} holds no run, expected directories with run.json (as python run.py writes it)")
    found.finished = _with_recorded_words(found.finished)
    return found


def _with_recorded_words(runs: list[Run]) -> list[Run]:
    """Gives trainings, which record no words, those of their evaluations if their task's class is not imported."""
    recorded = {run.task.name: run.words for run in runs if run.verb == "evaluate"}
    return [
        replace(run, words=recorded.get(run.task.name, run.words))
        if run.verb == "train" and type(run.task) is Task
        else run
        for run in runs
    ]


def _take(path: Path, found: Found, trusted: Collection[str]) -> None:
    """Reads the run in `path` into the right list of `found`."""
    state = "waiting"
    try:
        state = _state(path)
        if state == "waiting":
            found.left_out.append(LeftOut(path, "waiting", "not begun" if path.is_dir() else "no such directory"))
            return
        if (record.read(path) or {}).get("verb", "train") not in ("train", "evaluate"):
            return  # of a verb that has no results
        if state == "finished":
            found.finished.append(_read(path, state, trusted))
            return
        found.left_out.append(LeftOut(path, state, _reason(path, state)))
        run = _read(path, state, trusted)
        if run.verb == "train":
            found.unfinished.append(run)
    except DAMAGE as error:
        if all(left.path != path for left in found.left_out):
            found.left_out.append(LeftOut(path, "damaged", _damage(error)))


def _damage(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{Path(error.filename).name}: {error.strerror}"
    return f"a key is missing: {error}" if isinstance(error, KeyError) else (str(error).splitlines() or ["unknown"])[0]


def _run_dirs(root: Path) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        if record.FILE in files or {"config.yaml", "metrics.jsonl"} <= set(files):
            yield Path(folder)
            subfolders[:] = [name for name in subfolders if name not in PARTS]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))


def _jobs(root: Path, found: Found) -> Iterator[Path]:
    """Directories that a sweep's manifest in `root` or under it names, whether they exist or not.

    A damaged manifest is left out: its jobs are found by their directories.
    """
    for manifest in [*root.glob(MANIFEST), *root.glob(f"*/{MANIFEST}")]:
        try:
            jobs = read_manifest(manifest)
        except (ValueError, OSError) as error:
            found.left_out.append(LeftOut(manifest, "damaged", _damage(error)))
            continue
        for job in jobs:
            yield manifest.parent / job["dir"]


def _state(path: Path) -> record.State:
    """State by run.json and the lock. Runs of versions without run.json are finished if they have results."""
    if record.read(path) is not None or record.in_use(path) or not (path / "config.yaml").is_file():
        return record.state_of(path)
    steps = _step(_config(path)["workspace"].get("num_steps"))
    return "finished" if (path / "evaluation.json").is_file() or _rollouts(path, steps).is_file() else "interrupted"


def _reason(path: Path, state: str) -> str:
    """Why a run has not finished: its error and the end of its log, or its progress."""
    about = record.read(path) or {}
    if state == "failed":
        return about.get("error") or "\n".join(_tail(path / "run.log", 3)) or "no reason is known"
    steps = [row["step"] for row in _metrics(path, whole=False)]
    total = _config(path).get("workspace", {}).get("num_steps")
    return f"at step {max(steps, default=0):,} of {total:,}" if total else "has not written its results yet"


def _tail(path: Path, n: int) -> list[str]:
    return read_text(path).splitlines()[-n:] if path.is_file() else []


def _read(path: Path, state: record.State, trusted: Collection[str]) -> Run:
    """Reads a finished run. Raises ValueError, KeyError or OSError if it is damaged."""
    about, config = record.read(path) or {}, _config(path)
    task = task_of(config, trusted)
    common: dict[str, Any] = {
        "path": path,
        "task": task,
        "state": state,
        "record": about,
        "metrics": _metrics(path, whole=state == "finished"),
    }
    evaluates = about.get("verb") == "evaluate" or (path / "evaluation.json").is_file()
    return _evaluation(config, common) if evaluates else _training(config, common)


def _training(config: Config, common: dict[str, Any]) -> Run:
    steps, task = _step(config["workspace"]["num_steps"]), common["task"]
    has_env = config["task"].get("env") is not None
    protocol = _protocol(config["env_runner"], task) if has_env else Protocol.without_rollouts(task.name)
    words = Words(task.score, task.success, task.reset)
    run = Run(verb="train", config=config, protocol=protocol, words=words, step=steps, **common)
    if run.state != "finished":
        return run
    if not (has_env and run.curve("rollout/score")):
        return replace(run, protocol=Protocol.without_rollouts(task.name))
    file = _rollouts(run.path, steps)
    rows = read_json(file)
    check(rows, [ROW], file.name)
    rows = [row for row in rows if protocol.first <= row["seed"] <= protocol.last]  # the rest: training seeds
    inference_ms = [row["rollout/inference_ms"] for row in run.metrics if "rollout/inference_ms" in row]
    return replace(run, episodes=_checked(rows, protocol, file), inference_ms=(inference_ms or [None])[-1])


def _protocol(runner: dict[str, Any], task: Task) -> Protocol:
    """Protocol of a training's rollouts: the numbers in its configuration, else those of the protocol it names."""
    harder = disturbances(runner.get("kick", 0.0), runner.get("n_late", 0))
    named, known = runner.get("protocol"), {protocol.name: protocol for protocol in task.protocols}
    numbers = ("n_episodes", "start_seed", "max_steps")
    if any(runner.get(key) is None for key in numbers):
        default = known[named] if named else task.protocols[0]
        runner = {key: getattr(default, key) if runner.get(key) is None else runner[key] for key in numbers}
    n_episodes, first, max_steps = (runner[key] for key in numbers)
    last, name = first + n_episodes - 1, task.name_of(n_episodes, first, max_steps)
    return Protocol(task.name, first, last, max_steps, name, harder)


def _evaluation(config: Config, common: dict[str, Any]) -> Run:
    file, task = common["path"] / "evaluation.json", common["task"]
    evaluation = read_json(file) if common["state"] == "finished" else {}
    if not evaluation:
        raise ValueError("an evaluation without evaluation.json")
    check(evaluation, EVALUATION, file.name)
    about = evaluation["protocol"]
    if len(about["seeds"]) != 2:
        raise ValueError(f"{file.name} has {len(about['seeds'])} seeds of a protocol, expected the first and the last")
    first, last = about["seeds"]
    name = about.get("name")
    harder = _words(about.get("disturbances") or "")
    protocol = Protocol(task.name, first, last, about["max_steps"], None if name == "custom" else name, harder)
    checkpoint = evaluation.get("checkpoint")
    trained_in = _trained_in(checkpoint, common["path"])
    return Run(
        verb="evaluate",
        config=_config_of_evaluation(config, trained_in, checkpoint),
        protocol=protocol,
        words=Words(*(_words(about.get(key) or getattr(task, key)) for key in Words._fields)),
        episodes=_checked(evaluation["episodes"], protocol, file),
        inference_ms=evaluation.get("inference_ms"),
        step=_step(evaluation.get("step")),
        checkpoint=checkpoint,
        trained_in=trained_in,
        privileged=bool(evaluation.get("privileged")),
        **common,
    )


def _words(text: str) -> str:
    """`text` without the interval's name, because the report computes its own intervals."""
    return re.sub(r"; 95 % \w+ interval$", "", str(text))


def _trained_in(checkpoint: str | None, evaluated_in: Path) -> Path | None:
    """The run directory of a checkpoint, or, if everything was moved, the one next to the evaluation.

    One far from the evaluation is not read: the file may name any directory of this machine.
    """
    if checkpoint is None:
        return None
    there = Path(checkpoint).parent.parent
    for candidate in (there, evaluated_in.parent / there.name):
        near = candidate.resolve().is_relative_to(evaluated_in.resolve().parent.parent)
        if near and not candidate.is_symlink() and (candidate / "config.yaml").is_file():
            return candidate.resolve()
    return None


def _config_of_evaluation(config: Config, trained_in: Path | None, checkpoint: str | None) -> Config:
    """The training's configuration as far as it is known, with the evaluation's own settings."""
    chosen = {key: config[key] for key in groups_with("sampling", "guidance", "protocol") if key in config}
    if trained_in is not None:
        return {**_config(trained_in), **chosen}
    if config.get("training"):
        return {**config, "workspace": config["training"]}
    return {**{key: config[key] for key in (*FIXED, "seed") if key in config}, **chosen}


def _step(value: object) -> int | None:
    """`value` as a part of file names. Raises ValueError for anything but a whole number, or None."""
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError(f"step {value!r:.40}, expected a whole number")
    return value


def _checked(rows: list[dict[str, Any]], protocol: Protocol, file: Path) -> list[dict[str, Any]]:
    """Raises ValueError unless there is one sound row for each seed of the protocol, in their order."""
    for row in rows:
        check(row, {**ROW, **{key: NUMBER for key in row if key.startswith(FINAL)}}, file.name)
    if len(rows) != protocol.n_episodes or any(row["seed"] != protocol.first + n for n, row in enumerate(rows)):
        raise ValueError(f"{file.name}: expected one episode for each of the seeds {protocol.first}–{protocol.last}")
    return rows


def _rollouts(path: Path, step: int | None) -> Path:
    return path / "rollouts" / f"{step}.json"


def _config(path: Path) -> Config:
    config = read_yaml(path / "config.yaml")
    if not isinstance(config, dict):
        raise ValueError("config.yaml holds no configuration")
    config = migrate(plain(config, "config.yaml"))
    check(config, CONFIG, "config.yaml")
    return config


def _metrics(path: Path, whole: bool) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl. `whole`: raise ValueError for a damaged line instead of dropping the rest."""
    file, rows = path / "metrics.jsonl", []
    lines = read_text(file).splitlines() if os.path.lexists(file) else []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(parse_json(line, "it"))
            check(rows[-1], METRICS, "it")
        except ValueError as error:
            if whole:
                raise ValueError(f"metrics.jsonl: line {number} is damaged, {error}") from None
            return rows[: number - 1]
    return rows

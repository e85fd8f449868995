"""Rounds of collecting where a policy fails and training on it. Every stage of a round is an ordinary command.

The directories are the truth: a stage whose run has finished is not run again. So the same command resumes, whatever
killed it.
"""

import logging
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from hydra.errors import HydraException
from tabulate import tabulate

from dp import limits
from dp.data.recording import STORE, last_seed, n_episodes
from dp.files import differing, write_json
from dp.kernels.calibration import AVAILABLE, fastest_num_threads
from dp.tasks import Task
from workspaces import build, command, nested, record
from workspaces.base import Config, Workspace
from workspaces.errors import Interrupted, explain
from workspaces.evaluate import OWN, check_networks
from workspaces.foreign import read_settings, read_yaml
from workspaces.rollouts import counted, estimate_of, text_of
from workspaces.schema import COUNT, NUMBER, Maybe, check
from workspaces.settings import group, key, role
from workspaces.signals import Signals, StopNow
from workspaces.trust import packages_of

log = logging.getLogger(__name__)

FILE = "improve.json"

OWN_KEYS = {"checkpoint", "run_dir", "workspace", "init_from", "trust"}
"""Keys that the rounds set themselves."""


class ImproveWorkspace(Workspace):
    """Expert iteration: `n_rounds` times collect, train and evaluate, each with the policy of the round before.

    round-<r>-collect/, -train/, -evaluate/, and for the last round -critic/ and -guided/ are run directories.

    Args:
        config: the composed configuration of the experiment. With `checkpoint`, that policy is round 0. Otherwise
            round 0 trains it.
        n_rounds: rounds after round 0; 0 only trains and evaluates. May be raised later.
        start, collect, train, critic, evaluate: overrides of the commands of each kind: of round 0's training, of the
            collections, of the other rounds' trainings, of the last policy's critic (None: there is none), and of the
            evaluations, whose seeds nothing else may use.
        afresh: whether a round trains from the start instead of from the policy of the round before.

    Raises ValueError for unusable settings.
    """

    verb = "improve"
    computes: ClassVar[bool] = False

    def __init__(
        self,
        config: Config,
        n_rounds: limits.Count,
        start: str,
        collect: str,
        train: str,
        critic: str | None,
        evaluate: str,
        afresh: bool,
    ) -> None:
        run_dir = config["run_dir"] or str(Path("outputs") / f"{config['name']}-improve")
        super().__init__({**config, "run_dir": run_dir})
        task = build.task(self.config)
        if task.make_env is None:
            raise ValueError(f"task {task.name} has no simulator (task.env=null): no policy can practise there")
        self.packages, self.n_rounds, self.afresh = task.packages, n_rounds, afresh
        texts = {"start": start, "collect": collect, "train": train, "critic": critic, "evaluate": evaluate}
        self._of = {kind: _split(kind, text) for kind, text in texts.items()}
        self.has_critic = critic is not None
        typed = [o for o in record.overrides() if role(key(o)) not in ("verb", "outside")]
        self._trust = command.trust(packages_of(self.config))  # as the user composed them
        self._typed = {
            "train": [o for o in typed if role(key(o)) not in ("data", "source")],
            "start": typed,
            "other": [*(o for o in typed if group(o) in {*OWN} - {"workspace", "trust"}), *self._trust],
        }
        self._check_stages(task)

    def _check_stages(self, task: Task) -> None:
        """Raises ValueError for overrides that cannot be read, for a collection that the task does not allow, for tests
        on seeds of demonstrations, and for a policy that the experiment cannot go on with.

        Otherwise hours would pass before a later stage failed.
        """
        for kind, overrides in self._of.items():
            verb = {"start": "train"}.get(kind, kind)
            shared = self._typed["start" if verb == "train" else "other"]
            try:
                config = build.settings(
                    nested.without_hydra(nested.composed([f"workspace={verb}", *shared, *overrides]))
                )
            except HydraException as error:
                raise ValueError(f"workspace.{kind}: {explain(error)}") from error
            if kind == "collect":
                build.check_collection(config, task)
                task.first_seed(config["workspace"]["start_seed"], "workspace.start_seed")
            elif kind == "critic" and overrides:
                task.first_seed(config["workspace"]["start_seed"], "workspace.start_seed")
            elif kind == "evaluate":
                _check_test_seeds(config["env_runner"], task)
            elif kind == "train" and self.config["checkpoint"] is not None:
                _check_same_networks(config, self.config["checkpoint"])

    def run(self) -> float | None:
        """Runs what is left of all rounds. Returns the score of the last evaluation."""
        self.take_run_dir()
        self._n_threads = self._choose_threads()
        self._check_settings()
        self.begin_run({"n_threads": self._n_threads})
        again = command.again(*self.overrides)
        signals = Signals()
        try:
            with signals, signals.interrupting():  # between and at the start of commands, which handle them later
                for kind, number, overrides in self._stages():
                    self._run(self._dir(kind, number), overrides)
        except Interrupted as stop:
            raise Interrupted(f"{stop}\nTo go on with all rounds: {again}", stop.exit_code) from None
        except StopNow:
            raise signals.interrupted(f"{self.run_dir} keeps what was finished. To go on: {again}") from None
        log.info("\n%s", tabulate(list(self._rows()), "keys", disable_numparse=True))
        log.info("report: %s", command.run("workspace=report", command.override("runs", self.run_dir), *self._trust))
        return self.score

    def _stages(self) -> Iterator[tuple[str, int, list[str]]]:
        """Kind, round and overrides of each command, in their order.

        What follows from earlier commands is read when it is due.
        """
        checkpoint, paths = self.config["checkpoint"], None
        if checkpoint is None:
            yield "train", 0, [*self._typed["start"], *self._of["start"]]
            checkpoint = self._dir("train", 0)
        yield "evaluate", 0, self._evaluate(checkpoint)
        for number in range(1, self.n_rounds + 1):
            yield "collect", number, self._collect(number, checkpoint)
            paths = self._paths() if paths is None else paths
            paths = [*paths, str(self._store(number).absolute())]
            begun = [] if self.afresh else [command.override("init_from", checkpoint)]
            data = command.override("dataset.path", paths)
            yield "train", number, [*self._typed["train"], *self._of["train"], *begun, data]
            checkpoint = self._dir("train", number)
            yield "evaluate", number, self._evaluate(checkpoint)
        if self.has_critic:
            policy = command.override("checkpoint", checkpoint)
            practice = ["workspace=critic", policy, *self._typed["other"], *self._of["critic"]]
            yield "critic", self.n_rounds, practice
            path = command.override("guidance.path", self._dir("critic", self.n_rounds))
            yield "guided", self.n_rounds, [*self._evaluate(checkpoint), "guidance=best_of_n", path]

    def _evaluate(self, checkpoint: object) -> list[str]:
        policy = command.override("checkpoint", checkpoint)
        return ["workspace=evaluate", policy, *self._typed["other"], *self._of["evaluate"]]

    def _collect(self, number: int, checkpoint: object) -> list[str]:
        """Collects from where the round before has stopped."""
        policy = command.override("checkpoint", checkpoint)
        before = last_seed(self._store(number - 1)) if number > 1 else None
        seed = [] if before is None else [f"workspace.start_seed={before + 1}"]
        return ["workspace=collect", policy, *self._typed["other"], *self._of["collect"], *seed]

    def _run(self, run_dir: Path, overrides: list[str]) -> None:
        if record.state_of(run_dir) == "finished":
            return
        place = [command.override("run_dir", run_dir), f"n_threads={self._n_threads}"]
        typed = [*(o for o in overrides if not o.startswith(("run_dir=", "n_threads="))), *place]
        log.info("\n%s: %s", run_dir.name, command.again(*typed))
        with nested.command(typed) as stage:
            stage.run()

    def _dir(self, kind: str, number: int) -> Path:
        return self.run_dir / f"round-{number}-{kind}"

    def _store(self, number: int) -> Path:
        return self._dir("collect", number) / STORE

    def _paths(self) -> list[str]:
        """The stores that round 0 was trained on."""
        if self.config["checkpoint"] is None:
            return list(read_yaml(self._dir("train", 0) / "config.yaml")["dataset"]["path"])
        return [str(path.absolute()) for path in build.demonstrations(build.resolve(self.config)).paths]

    def _choose_threads(self) -> int:
        """As many threads in all stages, and after a resume: the last bit of a sum depends on their number."""
        typed, begun = self.config["n_threads"], record.read_or_none(self.run_dir) or {}
        if typed != "auto":
            return int(typed)
        return int(begun.get("n_threads") or fastest_num_threads(AVAILABLE)[0])

    def _check_settings(self) -> None:
        """Raises ValueError if the directory holds rounds that were made otherwise."""
        file = self.run_dir / FILE
        here = {
            **{f"workspace.{kind}": shlex.join(overrides) for kind, overrides in self._of.items()},
            "workspace.afresh": self.afresh,
            "checkpoint": self.config["checkpoint"],
            "typed": sorted(o for o in self._typed["start"] if role(key(o)) not in ("place", "output", "speed")),
        }
        there = read_settings(file) if file.is_file() else here
        if not self.has_critic:
            here["workspace.critic"] = there.get("workspace.critic")  # a critic of before may stay
        if others := differing(there, here):
            raise ValueError(f"{self.run_dir} holds rounds with other settings ({others}): set another run_dir")
        write_json(file, here)

    def _rows(self) -> Iterator[dict[str, str]]:
        """A table of the rounds."""
        for number in range(self.n_rounds + 1):
            collected = n_episodes(self._store(number)) if number else 0
            yield {"round": str(number), "collected": str(collected), **self._result("evaluate", number)}
        if self.has_critic:
            yield {
                "round": f"{self.n_rounds}, with the critic",
                "collected": "",
                **self._result("guided", self.n_rounds),
            }

    def _result(self, kind: str, number: int) -> dict[str, str]:
        file = self._dir(kind, number) / "evaluation.json"
        found = read_settings(file)
        check(found, {"score": Maybe(NUMBER), "n_episodes": COUNT, "protocol": {"seeds": [COUNT]}}, str(file))
        seeds = "-".join(map(str, found["protocol"]["seeds"]))
        self.score = found["score"]
        return {
            "score": text_of(estimate_of(found, "score")),
            "success": text_of(estimate_of(found, "success"), percent=True),
            "protocol": f"{counted(found['n_episodes'], 'episode')}, seeds {seeds}",
        }


def _check_test_seeds(runner: Mapping[str, Any], task: Task) -> None:
    """Raises ValueError if test episodes may begin like demonstrations that will be collected."""
    start, seeds = runner["start_seed"], task.demonstration_seeds
    if start is not None and start < seeds.stop and start + (runner["n_episodes"] or 1) > seeds.start:
        raise ValueError(
            f"workspace.evaluate: env_runner.start_seed={start}, but seeds {seeds[0]} to {seeds[-1]} are for "
            f"demonstrations. Expected one from {seeds.stop} on"
        )


def _check_same_networks(config: Config, path: str) -> None:
    """Raises ValueError if the experiment cannot begin from the weights in `path`."""
    try:
        check_networks(config, path)
    except ValueError as error:
        without = ", without +debug" if config.get("debug") else ""
        raise ValueError(f"{error}. Type the experiment that it was trained with: +experiment=...{without}") from None


def _split(kind: str, text: str | None) -> list[str]:
    try:
        overrides = shlex.split(text or "")
    except ValueError as error:
        raise ValueError(f"workspace.{kind}={text}: {error}") from None
    own = OWN_KEYS | ({"workspace.path"} if kind == "collect" else {"dataset.path"} if kind == "train" else set())
    for override in overrides:
        if key(override) in own:
            raise ValueError(f"workspace.{kind}: leave out {override}. The rounds set {key(override)} themselves")
    return overrides

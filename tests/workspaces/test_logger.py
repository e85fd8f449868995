"""What reaches metrics.jsonl and wandb, read back from wandb's own offline files."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from tests.test_configs import composed
from tests.workspaces.conftest import metrics
from tests.workspaces.wandb_file import records
from workspaces import settings
from workspaces.logger import Logger, _use_writable

SCORE = ("score", "score_ci_low", "score_ci_high")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return tmp_path_factory.mktemp("logged") / "run"


@pytest.fixture
def logged(reference, run):
    """A training run with wandb offline, stopped by its step count and continued: two wandb sessions of one run."""
    if not reference.is_dir():
        for steps in (12, 24):
            result = run(
                f"run_dir={reference}", f"workspace.num_steps={steps}", "logger.mode=offline", "logger.group=g",
                "logger.tags=[a,b]",
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
            assert "wandb sync" in result.stderr
    return reference


def _sessions(run_dir: Path) -> list[list]:
    return [list(records(next(d.glob("*.wandb")))) for d in sorted(run_dir.glob("wandb/offline-run-*"))]


def test_a_resumed_run_continues_the_same_wandb_run(logged):
    runs = [
        record.run for session in _sessions(logged) for record in session if record.WhichOneof("record_type") == "run"
    ]
    assert len(_sessions(logged)) == 2
    assert len({r.run_id for r in runs}) == 1
    assert (runs[0].run_group, list(runs[0].tags), runs[0].job_type) == ("g", ["a", "b"], "train")


def test_wandb_gets_every_number_of_metrics_jsonl(logged):
    sent: dict[int, dict[str, float]] = {}
    for session in _sessions(logged):
        for record in session:
            if record.WhichOneof("record_type") == "history":
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                sent.setdefault(row["step"], {}).update(row)
    for row in metrics(logged):
        for key, value in row.items():
            assert sent[row["step"]][key] == pytest.approx(value), key
    assert sent[24]["rollout/episodes/_type"] == "table-file"
    assert sent[24]["media/100000/_type"] == "video-file"


def test_wandb_knows_the_axis_the_configuration_and_the_exit_code(logged):
    session = _sessions(logged)[0]
    kinds = {kind: [r for r in session if r.WhichOneof("record_type") == kind] for kind in ("metric", "exit", "run")}
    axes = {m.metric.glob_name or m.metric.name: m.metric.step_metric for m in kinds["metric"]}
    assert axes["train/*"] == axes["val/*"] == axes["rollout/*"] == "step"
    config = {u.key: json.loads(u.value_json) for r in kinds["run"] for u in r.run.config.update}
    assert config["horizon"] == 16
    assert config["dataset"]["path"]
    assert kinds["exit"][-1].exit.exit_code == 0


def test_wandb_shows_the_best_and_the_last_score_with_their_intervals(logged):
    summary = {}
    for record in _sessions(logged)[1]:
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    rollouts = {row["step"]: row for row in metrics(logged) if "rollout/score" in row}
    assert summary["last"] == {"step": 24, **{k: rollouts[24][f"rollout/{k}"] for k in SCORE}}
    best = max(rollouts.values(), key=lambda row: row["rollout/score"])
    assert summary["best"] == {"step": best["step"], **{k: best[f"rollout/{k}"] for k in SCORE}}


def test_a_failed_run_is_a_failed_wandb_run(run, tmp_path):
    result = run(
        f"run_dir={tmp_path / 'run'}", "optimizer.lr=1e9", "workspace.max_grad_norm=inf", "logger.mode=offline"
    )
    assert result.returncode == 1
    exits = [r.exit.exit_code for r in _sessions(tmp_path / "run")[0] if r.WhichOneof("record_type") == "exit"]
    assert exits == [1]


def test_what_a_run_does_not_need_is_not_even_imported(command, tmp_path):
    """wandb when it is disabled, what only a ResNet needs, and what diffusers' other schedulers need: seconds."""
    code = (
        "import sys; sys.argv = sys.argv[1:]; import runpy, atexit;"
        "atexit.register(lambda: print({'wandb', 'torchvision', 'scipy.stats'} & sys.modules.keys()));"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    python, *arguments = command(
        "run_dir=run", "workspace.num_steps=1", "env_runner.n_episodes=1", "logger.mode=disabled"
    )
    result = subprocess.run([python, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("set()\n")


class FakeRun:
    """A wandb run that notes what it gets. `fails`: what its calls raise; `hangs`: seconds that they take."""

    id, dir = "abc", "wandb/run/files"

    def __init__(self, fails: Exception | None = None, hangs: float = 0.0) -> None:
        self.rows: list[dict] = []
        self.fails, self.hangs = fails, hangs

    def log(self, row: dict) -> None:
        time.sleep(self.hangs)
        if self.fails is not None:
            raise self.fails
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.log({"exit": exit_code})

    def define_metric(self, *_: object, **__: object) -> None:
        pass


class FakeWandb:
    """wandb's module: `calls` in their order. `online`: whether the server answers."""

    def __init__(self, online: bool = True, run: FakeRun | None = None) -> None:
        self.online, self.run = online, run or FakeRun()
        self.calls: list[str] = []
        self.arguments: dict = {}

    def login(self, **_: object) -> bool:
        return True

    def init(self, mode: str, **arguments: object) -> FakeRun:
        self.calls.append(mode)
        self.arguments = arguments
        if mode == "online" and not self.online:
            raise ConnectionError("no network")
        return self.run

    def teardown(self) -> None:
        self.calls.append("teardown")

    def Settings(self, **settings: object) -> dict:
        return settings

    def Table(self, **_: object) -> None:
        raise OSError("cannot be staged")


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts a logger that gets a fake wandb, under wandb's variables and no others."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)

    def start(fake: FakeWandb, mode: str = "auto", variables: dict[str, str] | None = None, **given: object) -> Logger:
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return Logger(tmp_path, {"name": "n"}, "train", mode=mode, **given)

    return start


def _steps(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("fails", [{"fails": ConnectionError("service is gone")}, {"hangs": 30.0}])
def test_a_wandb_that_breaks_or_hangs_ends_nothing(start, tmp_path, caplog, monkeypatch, fails):
    monkeypatch.setattr("workspaces.logger.TIME_LIMIT_S", 0.1)
    logger = start(FakeWandb(run=FakeRun(**fails)))
    for step in (1, 2):
        logger.log(step, {"train/loss": 0.5})
    logger.close(failed=False)
    assert _steps(tmp_path) == [1, 2]
    assert sum("wandb failed" in message for message in caplog.messages) == 1


def test_a_service_that_does_not_answer_is_killed_so_that_the_process_can_end(start, monkeypatch):
    monkeypatch.setattr("workspaces.logger.TIME_LIMIT_S", 0.1)
    fake, killed = FakeWandb(run=FakeRun(hangs=30.0)), []
    process = SimpleNamespace(kill=lambda: killed.append(True))
    connection = SimpleNamespace(_proc=SimpleNamespace(_process=process))
    fake.setup = lambda: SimpleNamespace(_connection=connection)
    start(fake).close(failed=False)
    assert killed == [True]


def test_a_table_that_fails_does_not_end_the_numbers(start, caplog):
    fake = FakeWandb()
    logger = start(fake)
    for step in (1, 2):
        logger.log_episodes(step, [{"seed": 0}], {})
        logger.log(step, {"train/loss": 0.5})
    logger.close(failed=True)
    assert [row.get("step") for row in fake.run.rows] == [1, 2, None]
    assert fake.run.rows[-1] == {"exit": 1}
    assert sum("no more tables" in message for message in caplog.messages) == 1


def test_without_a_network_the_run_is_offline_under_its_own_id(start, caplog):
    fake = FakeWandb(online=False)
    logger = start(fake, run_id="mine")
    assert fake.calls == ["online", "teardown", "offline"]  # without the teardown, the id counts as in use
    assert fake.arguments["id"] == "mine"
    assert logger.run_id == fake.run.id
    assert any("wandb sync" in message or "offline" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("mode", "variables", "expected"),
    [
        ("auto", {"WANDB_MODE": "offline"}, ["offline"]),
        ("auto", {"WANDB_MODE": "dryrun"}, ["offline"]),
        ("auto", {"WANDB_MODE": "disabled"}, []),
        ("auto", {"WANDB_DISABLED": "true"}, []),
        ("auto", {"WANDB_DISABLED": "false"}, ["online"]),
        ("online", {"WANDB_MODE": "offline"}, ["online"]),
        ("disabled", {"WANDB_MODE": "online"}, []),
    ],
)
def test_the_mode_is_the_keys_and_else_the_variables(start, mode, variables, expected):
    fake = FakeWandb()
    start(fake, mode, variables)
    assert fake.calls == expected


@pytest.mark.parametrize(
    ("key", "variable", "argument", "unset"),
    [
        ("project", "WANDB_PROJECT", "project", None),
        ("name", "WANDB_NAME", "name", "n-test"),
        ("entity", "WANDB_ENTITY", "entity", None),
        ("group", "WANDB_RUN_GROUP", "group", None),
        ("notes", "WANDB_NOTES", "notes", None),
        ("tags", "WANDB_TAGS", "tags", ["n"]),
    ],
)
def test_a_key_comes_before_wandbs_own_variable(start, tmp_path, key, variable, argument, unset):
    fake, given = FakeWandb(), ["a"] if key == "tags" else "a"
    start(fake)
    assert str(fake.arguments[argument]).startswith(str(unset)[:6])
    start(fake, variables={variable: "b"})
    assert fake.arguments[argument] in (None, "b")  # wandb reads the others itself where it is given None
    start(fake, **{key: given})
    assert fake.arguments[argument] == given


def test_a_home_that_cannot_be_written_is_replaced_unless_the_user_says_where(monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    for default in (tmp_path / "not" / "yet", tmp_path):
        _use_writable("WANDB_DATA_DIR", default, lambda: tmp_path / "run")
        assert "WANDB_DATA_DIR" not in os.environ
    _use_writable("WANDB_DATA_DIR", Path("/dev/null/.local"), lambda: tmp_path / "run")
    assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / "run")
    monkeypatch.setenv("WANDB_DATA_DIR", "mine")
    _use_writable("WANDB_DATA_DIR", Path("/dev/null/.local"), lambda: tmp_path / "run")
    assert os.environ["WANDB_DATA_DIR"] == "mine"


def test_every_line_of_metrics_is_json(tmp_path):
    logger = Logger(tmp_path, {"name": "n"}, "train", mode="disabled")
    logger.log(1, {"val/loss": math.nan, "rollout/score": math.inf, "train/loss": np.float64(0.5)})
    logger.close(failed=False)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert line == {"step": 1, "val/loss": None, "rollout/score": None, "train/loss": 0.5}


def test_the_commands_of_a_wandb_agent_compose():
    """The example's command, with the values as wandb's own code writes them, is an experiment of ours."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    text = (Path(__file__).parent.parent.parent / "docs/tutorial/wandb_sweep.yaml").read_text()
    sweep = yaml.safe_load(text)
    chosen = {
        key: entry["values"][0] if "values" in entry else entry["min"] for key, entry in sweep["parameters"].items()
    }
    values = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    *program, experiment, arguments = sweep["command"]
    assert program == ["${env}", "${interpreter}", "${program}"]
    config = composed(experiment, *values[arguments.removeprefix("${").removesuffix("}")])
    settings.check(config)
    for key, value in chosen.items():
        assert settings.flatten(config)[key] == float(value)


def test_truncating_forgets_the_lines_after(tmp_path):
    logger = Logger(tmp_path, {"name": "n"}, "train", mode="disabled", project="p", group=None, tags=None)
    logger.log(1, {"a": 1.0})
    offset = logger.offset
    logger.log(2, {"a": 2.0})
    logger.truncate(offset)
    logger.log(3, {"a": 3.0})
    logger.close(failed=False)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 3]

"""What reaches metrics.jsonl and wandb, read back from wandb's own offline files."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.workspaces.conftest import metrics
from tests.workspaces.wandb_file import records
from workspaces.logger import Logger

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
        f"run_dir={tmp_path / 'run'}", "optimizer.lr=1e30", "workspace.max_grad_norm=inf", "logger.mode=offline"
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
    python, *arguments = command("run_dir=run", "workspace.num_steps=1", "logger.mode=disabled")
    result = subprocess.run([python, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("set()\n")


def test_a_wandb_that_breaks_ends_nothing(tmp_path, caplog):
    logger = Logger(tmp_path, {"name": "n"}, "train", mode="disabled", project="p", group=None, tags=None)
    logger._run = Broken()
    for step in (1, 2):
        logger.log(step, {"train/loss": 0.5})
    logger.close(failed=False)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert sum("wandb failed" in message for message in caplog.messages) == 1


class Broken:
    """A wandb run whose every call fails, as when its service process has died."""

    def log(self, row):
        raise ConnectionError("service is gone")

    finish = log


def test_truncating_forgets_the_lines_after(tmp_path):
    logger = Logger(tmp_path, {"name": "n"}, "train", mode="disabled", project="p", group=None, tags=None)
    logger.log(1, {"a": 1.0})
    offset = logger.offset
    logger.log(2, {"a": 2.0})
    logger.truncate(offset)
    logger.log(3, {"a": 3.0})
    logger.close(failed=False)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 3]


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected one of: auto, online, offline, disabled"):
        Logger(tmp_path, {"name": "n"}, "train", mode="on", project="p", group=None, tags=None)

"""The verb: what it writes, and what it refuses."""

import json

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from tests.cli import run_py
from tests.workspaces.report.conftest import CONFIGS


def test_a_sweep_becomes_a_page_tables_and_figures(sweep):
    result = run_py("workspace=report", f"runs={sweep}", cwd=sweep)
    assert result.returncode == 0, result.stderr
    assert "CPU threads" not in result.stderr  # nothing is timed for what computes nothing
    out = sweep / "report"
    assert str(out / "report.html") in result.stderr
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {
        "report.html",
        "tables/results.csv",
        "tables/results.md",
        "tables/results.tex",
        "figures/learning-curve-pusht_state.pdf",
        "figures/learning-curve-pusht_state.png",
    } <= names
    assert not (out / "run.json").exists()

    frame = pd.read_csv(out / "tables/results.csv").set_index("horizon")
    evaluation = json.loads((sweep / "h16-evaluated/evaluation.json").read_text())
    assert frame["score"][16] == pytest.approx(evaluation["score"])
    rows = json.loads((sweep / "h10/rollouts/24.json").read_text())[:3]
    assert frame["score"][10] == pytest.approx(sum(row["max_reward"] for row in rows) / 3)
    assert list(frame["protocol"]) == ["seeds 100000–100002, 20 steps", "seeds 100000–100003, 20 steps"]
    assert len(frame) == 2
    assert "| horizon" in (out / "tables/results.md").read_text()


def test_a_report_replaces_the_one_before_and_is_no_run(sweep, report):
    first = report(sweep)
    assert set(first.tables) == {"results", "paired-comparison", "trainings", "runs"}
    assert all(path.is_file() for path in first.figures.values())
    (sweep / "report/figures/heat-map-9.png").write_bytes(b"of an earlier report")
    (sweep / "report/figures/mine.txt").write_text("not ours")
    (sweep / "h16-evaluated/evaluation.json").write_text("{")
    second = report(sweep)
    assert list(second.tables["left-out"]["state"]) == ["damaged"]
    assert "paired-comparison" in second.tables  # the training's last rollout stands in
    assert not (sweep / "report/figures/heat-map-9.png").exists()
    assert (sweep / "report/figures/mine.txt").exists()


def test_a_baseline_is_typed_as_keys_and_values(sweep, report):
    (other,) = report(sweep, "report.baseline={horizon: 10}").tables["paired-comparison"]["setting"]
    assert other.startswith("horizon=16")
    with pytest.raises(ValueError, match=r"expected keys and values, such as 'report.baseline=\{horizon: 16\}'"):
        report(sweep, "report.baseline=best")


def test_a_report_on_nothing_finished_lists_what_there_is(sweep, report, tmp_path):
    for run in ("h16", "h10", "h16-evaluated"):
        file = sweep / run / "run.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "state": "failed", "error": "<b>no</b> luck"}))
    workspace = report(sweep, f"run_dir={tmp_path / 'elsewhere'}")
    assert list(workspace.tables) == ["left-out"]
    page = (tmp_path / "elsewhere/report.html").read_text()
    assert "No run here is finished" in page
    assert "&lt;b&gt;no&lt;/b&gt; luck" in page


def test_its_keys_exist_for_this_verb_alone():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert not {"runs", "report"} & set(compose("config"))
        assert {"runs", "report"} <= set(compose("config", ["workspace=report", "+experiment=pusht_state_small"]))


def test_a_mistake_is_answered_in_a_line(tmp_path):
    result = run_py("workspace=report", cwd=tmp_path)
    assert result.returncode == 1
    _, error = result.stderr.splitlines()
    assert error.startswith("error: set runs=DIR")
    assert not any(tmp_path.iterdir())

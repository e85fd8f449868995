"""Runs of a task that is not ours: reported from what they recorded, and nothing of them is imported."""

import json
import re
from pathlib import Path

import pytest
import yaml

from workspaces.report import figures
from workspaces.report.runs import find

TOY = {
    "_target_": "elsewhere.Task",
    "name": "toy/reach",
    "shape_meta": {
        "obs": {
            "front": {"type": "rgb", "shape": [3, 40, 60]},
            "joints": {"type": "low_dim", "shape": [7]},
        },
        "action": {"shape": [7]},
    },
    "protocols": None,
    "env": {"_target_": "elsewhere.Env", "_partial_": True},
}
PUSHT = ("coverage", "0.95", "paper", "T begins", "its T", "PushT", "LeRobot")


def config(task: dict, **settings) -> dict:
    return {
        "name": "toy", "seed": 0, "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8, "noise_draws": 1,
        "task": task, "encoder": {"_target_": "elsewhere.Encoder"}, "denoiser": {"_target_": "elsewhere.Denoiser"},
        "scheduler": {"_target_": "elsewhere.Sampler", "num_inference_steps": 4},
        "env_runner": {"n_episodes": 3, "start_seed": 7, "max_steps": 50}, "workspace": {"num_steps": 20},
        "logger": {"mode": "disabled", "group": None}, **settings,
    }  # fmt: skip


def write(folder: Path, verb: str, config: dict, metrics: list[dict], **files: object) -> None:
    """A finished run; `files`: content by name, with `__` for a slash."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in metrics))
    record = {"verb": verb, "state": "finished", "score": 0.5, "error": None, "overrides": []}
    for name, content in {"run": {**record, "ended": "2030-01-01T00:00:00+00:00"}, **files}.items():
        file = folder / f"{name.replace('__', '/')}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def rows(*rewards: float) -> list[dict]:
    return [
        {"seed": 7 + i, "max_reward": r, "success": r > 1, "length": 50, "final_tip_height": r / 4, "final_grip": 2.0}
        for i, r in enumerate(rewards)
    ]


CURVE = [{"step": s, "train/loss": 1 / s, "rollout/score": s / 8, "time/training_s": 6.0 * s} for s in (10, 20)]
VALIDATED = [
    {"step": s, "train/loss": 1 / s, "val/loss": 2 / s, "val/action_mse": e, "time/training_s": 6.0 * s}
    for s, e in ((5, 0.8), (10, 0.125), (20, 0.25))
]


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """A training and an evaluation of another one, whose record says what its metric is."""
    write(tmp_path / "toys/trained", "train", config(TOY), CURVE, rollouts__20=rows(0.2, 2.4, 1.6))
    words = {
        "reset": "the arm at a drawn pose",
        "score": "mean height of the cup; 95 % bootstrap interval",
        "success": "share of cups on the shelf",
    }
    protocol = {"name": "reach-3", "seeds": [7, 9], "max_steps": 50, **words}
    evaluation = {"protocol": protocol, "episodes": rows(0.3, 2.5, 1.7), "inference_ms": 3.0, "step": 20,
                  "checkpoint": "elsewhere/checkpoints/last.pt"}  # fmt: skip
    write(tmp_path / "toys/evaluated", "evaluate", config(TOY, horizon=8), [], evaluation=evaluation)
    return tmp_path / "toys"


def text_of(html: Path) -> str:
    """The page without the files inside it."""
    return re.sub(r"data:[\w/-]+;base64,[^\"]*", "", html.read_text())


def test_the_report_of_another_task_says_nothing_of_ours_and_imports_nothing(toys, report, tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    workspace = report(toys)
    everything = text_of(workspace.html) + "".join(p.read_text() for p in workspace.run_dir.glob("tables/*"))
    assert [word for word in PUSHT if word in everything] == []
    assert not (tmp_path / "imported").exists()
    assert "left-out" not in workspace.tables
    assert "the arm at a drawn pose" in everything
    assert "mean height of the cup. Success" in everything  # without the name of the interval
    assert "share of cups on the shelf" in everything
    assert "best reward. Success" not in everything  # the training has the words of the evaluation
    assert 'class="map"' not in everything
    assert "reach-3" in everything
    assert {path.parent for path in workspace.figures.values()} == {workspace.run_dir / "figures"}
    assert "learning-curve-toy-reach" in workspace.figures


def test_named_quantities_reach_tables_cards_and_comparisons(toys, report):
    workspace = report(toys)
    results = workspace.tables["results"].set_index("horizon")
    assert results["final tip height"]["8"] == pytest.approx(4.5 / 12)
    assert results["final tip height low"]["8"] < results["final tip height"]["8"]
    (difference,) = workspace.tables["paired-comparison"]["final tip height difference"]
    assert abs(difference) == pytest.approx(0.1 / 4)
    assert "final grip 2.000" in text_of(workspace.html)


def test_what_is_no_number_is_no_quantity(toys):
    file = toys / "trained/rollouts/20.json"
    file.write_text(file.read_text().replace('"final_grip": 2.0', '"final_grip": "<b>"'))
    assert [left.state for left in find(toys).left_out] == ["damaged"]


def test_rewards_above_one_fit_the_axes_and_the_bars(toys, report):
    html = report(toys).html.read_text()
    bars = [float(share) for share in re.findall(r"--reward:([\d.]+)", html)]
    assert (min(bars), max(bars)) == (pytest.approx(0.2 / 2.4), 1.0)
    run = next(run for run in find(toys).finished if run.verb == "train")
    with figures.style():
        drawn = figures.all_figures([run], [], [], [])["learning-curve-toy-reach"]
    assert drawn.axes[0].get_ylim()[1] > 2.5


@pytest.fixture
def without_a_simulator(tmp_path: Path) -> Path:
    for horizon, metrics in ((16, VALIDATED), (8, [{**row, "val/action_mse": 0.5} for row in VALIDATED])):
        settings = config({**TOY, "env": None}, horizon=horizon)
        write(tmp_path / f"real/h{horizon}", "train", settings, metrics)
    return tmp_path / "real"


def test_a_run_without_a_simulator_is_reported_by_its_validation(without_a_simulator, report):
    workspace = report(without_a_simulator)
    assert set(workspace.tables) == {"trainings", "runs"}
    trainings = workspace.tables["trainings"].set_index("setting")
    assert trainings["best action error ‡"]["horizon=16"] == 0.125
    assert trainings["last action error"]["horizon=16"] == 0.25
    assert not [name for table in workspace.tables.values() for name in table if "score" in name]
    assert {"val-action-mse-toy-reach", "train-loss-toy-reach", "val-loss-toy-reach"} == set(workspace.figures)
    page = text_of(workspace.html)
    assert "lowest validation action error" in page
    assert "0.1250" in page
    assert "No run here is finished" not in page
    assert "validation on held-out episodes, no rollouts" in page


def test_two_settings_without_scores_have_a_legend(without_a_simulator):
    runs = find(without_a_simulator).finished
    with figures.style():
        drawn = figures.all_figures(runs, [], [], [])["val-action-mse-toy-reach"]
    assert {text.get_text() for box in drawn.legends for text in box.get_texts()} == {"horizon=16", "horizon=8"}


def test_tasks_share_no_figure_and_no_comparison(toys, without_a_simulator, report, tmp_path):
    other = config({**TOY, "name": "other"})
    write(tmp_path / "toys/other", "train", other, CURVE, rollouts__20=rows(0.5, 0.6, 0.7))
    (tmp_path / "real").rename(tmp_path / "toys/real")
    for run in (tmp_path / "toys/real").iterdir():
        file = run / "config.yaml"
        file.write_text(file.read_text().replace("toy/reach", "robot"))
    workspace = report(tmp_path / "toys")
    names = set(workspace.figures)
    assert {f"train-loss-{task}" for task in ("toy-reach", "other", "robot")} <= names
    assert {"learning-curve-other", "learning-curve-toy-reach"} <= names
    assert "learning-curve-robot" not in names
    assert len(workspace.tables["paired-comparison"]) == 1
    assert set(workspace.tables["trainings"]["task"]) == {"toy/reach", "other", "robot"}


def test_a_baseline_whose_policy_was_never_trained_is_reported(toys, report):
    file = toys / "evaluated/evaluation.json"
    evaluation = json.loads(file.read_text())
    del evaluation["checkpoint"]
    file.write_text(json.dumps(evaluation))
    assert "left-out" not in report(toys).tables

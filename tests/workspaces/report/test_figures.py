"""What is drawn where."""

import itertools
import re

import numpy as np
import pytest
from matplotlib.text import Text

from tests.workspaces.report.conftest import IMAGE, STATE, made_up
from workspaces.report import figures
from workspaces.report.tables import compare, results

CURVE = [
    {"step": step, "rollout/score": step / 20, "train/loss": 1 / step, "time/training_s": 60.0 * step}
    for step in (1, 5, 10)
]


def grid(horizons=(16, 10), steps=(10, 5)):
    return [
        made_up([0.5, h / 20, k / 20], horizon=h, scheduler__num_inference_steps=k, inference_ms=float(k))
        for h in horizons for k in steps
    ]  # fmt: skip


def drawn(runs, unfinished=()):
    found = results(runs)
    with figures.style():
        return figures.all_figures(runs, list(unfinished), found, compare(found, None))


def texts(figure):
    return " ".join(t.get_text() for axes in figure.axes for t in axes.texts)


def legend(figure):
    return " ".join(text.get_text().replace("\n", " ") for box in figure.legends for text in box.get_texts())


def test_published_scores_are_those_of_the_runs_own_task_with_their_protocol():
    made = drawn([made_up([0.5], metrics=CURVE), made_up([0.5], metrics=CURVE, task=IMAGE)])
    state = legend(made["learning-curve-pusht_state"])
    assert "paper (keypoints), best checkpoint: 0.95 on 3 seeds × 50 episodes" in state
    assert "LeRobot" not in state
    image = legend(made["learning-curve-pusht_image"])
    assert "paper, mean of last 10: 0.84" in image
    assert "LeRobot's model card: 0.955 on 1 seed × 500 episodes" in image


def test_each_curve_is_drawn_once_over_steps_with_minutes_above():
    made = drawn([made_up([0.5], metrics=CURVE)])
    assert [name for name in made if name.startswith("learning-curve")] == ["learning-curve-pusht_state"]
    (axes,) = made["learning-curve-pusht_state"].axes
    (curve,) = [line for line in axes.lines if line.get_label() == "pusht"]
    assert list(curve.get_xdata()) == [1, 5, 10]
    (minutes,) = axes.child_axes
    assert minutes.get_xlabel() == "minutes of training"
    slow = [{**row, "time/training_s": 600.0 * row["step"]} for row in CURVE]
    two = drawn([made_up([0.5], metrics=CURVE), made_up([0.5], metrics=slow, horizon=8)])
    assert not two["learning-curve-pusht_state"].axes[0].child_axes  # a step took them unequal times


def test_recorded_intervals_are_shaded():
    bounds = {"rollout/score_ci_low": 0.1, "rollout/score_ci_high": 0.9}
    figure = drawn([made_up([0.5], metrics=[{**row, **bounds} for row in CURVE])])["learning-curve-pusht_state"]
    (band,) = figure.axes[0].collections
    assert (band.get_datalim(figure.axes[0].transData).ymin, band.get_paths()[0].vertices[:, 1].max()) == (0.1, 0.9)
    assert not drawn([made_up([0.5], metrics=CURVE)])["learning-curve-pusht_state"].axes[0].collections


def test_two_experiments_have_a_legend_in_every_figure_of_curves():
    made = drawn([made_up([0.5], metrics=CURVE, name=name) for name in ("mine", "yours")])
    for name in ("learning-curve-pusht_state", "train-loss-pusht_state"):
        assert {"mine", "yours"} <= set(legend(made[name]).split())


def outside(figure):
    """Texts that stick out of the figure. Numbers are ticks: matplotlib keeps those beyond the limits, undrawn."""
    figure.draw_without_rendering()
    words = [t for t in figure.findobj(Text) if t.get_visible() and re.search("[a-z]", t.get_text())]
    boxes = [(t.get_text(), t.get_window_extent()) for t in words]
    edge = figure.bbox
    return [text for text, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > edge.x1 + 1 or b.y1 > edge.y1 + 1]


@pytest.mark.parametrize("task", [STATE, IMAGE])
def test_no_label_is_cut_off_however_long_the_names_are(task):
    long = "a_name_of_an_experiment_that_somebody_wanted_to_be_very_clear_about_" * 3
    runs = [
        made_up([0.5, h / 20, k / 20], horizon=h, name=name, scheduler__num_inference_steps=k, inference_ms=float(k),
                scheduler___target_=f"diffusers.{kind}", metrics=CURVE, task=task, max_steps=1234567)
        for name in ("short", long) for h in (16, 10) for k, kind in ((10, "DDIMScheduler"), (5, "DDPMScheduler"))
    ]  # fmt: skip
    for name, figure in drawn(runs).items():
        assert not outside(figure), name


def test_a_dollar_is_a_dollar():
    names = ["a$b$", "$\\frac{$"]
    made = drawn([made_up([0.5], metrics=CURVE, name=name) for name in names])
    with figures.style():
        assert all(figures.svg(figure) for figure in made.values())
    assert all(name in legend(made["learning-curve-pusht_state"]) for name in names)


def test_the_mean_is_over_finished_seeds_alone():
    low = [{**row, "rollout/score": 0.0} for row in CURVE]
    runs = [made_up([0.5], metrics=CURVE, seed=0), made_up([0.5], metrics=low, seed=1)]
    killed = made_up([], metrics=[{**row, "rollout/score": 1.0} for row in CURVE], state="interrupted", path="killed")
    lines = drawn(runs, [killed])["learning-curve-pusht_state"].axes[0].lines
    named = {line.get_label(): line for line in lines}
    assert list(named["pusht (2 seeds)"].get_ydata()) == pytest.approx([1 / 40, 5 / 40, 10 / 40])
    assert named["killed: interrupted"].get_linestyle() == "--"


def test_the_heat_map_is_drawn_only_where_both_vary():
    assert "heat-map-1" in drawn(grid())
    assert "heat-map-1" not in drawn(grid(horizons=(16,)))
    assert "heat-map-1" not in drawn(grid(steps=(10,)))
    confounded = [made_up([0.5], horizon=h, optimizer__lr=h / 10, scheduler__num_inference_steps=k)
                  for h in (16, 10) for k in (10, 5)]  # fmt: skip
    assert "heat-map-1" not in drawn(confounded)
    assert "[" in texts(drawn(grid())["heat-map-1"])  # the interval


def test_a_horizon_too_short_for_eight_actions_is_in_the_same_heat_map():
    runs = [made_up([0.5], horizon=h, n_action_steps=min(8, h - 1), scheduler__num_inference_steps=k)
            for h in (8, 16) for k in (10, 5)]  # fmt: skip
    assert texts(drawn(runs)["heat-map-1"]).count("0.500") == 4
    chosen = [made_up([0.5], horizon=h, n_action_steps=h // 4, scheduler__num_inference_steps=k)
              for h in (8, 16) for k in (10, 5)]  # fmt: skip
    assert "heat-map-1" not in drawn(chosen)  # what was chosen is a setting of its own


def test_the_pareto_front_holds_what_nothing_beats():
    scores = {(1.0, 0.2): True, (2.0, 0.6): True, (3.0, 0.5): False, (4.0, 0.6): False, (9.0, 0.9): True}
    runs = [made_up([s, s], horizon=i, inference_ms=ms) for i, (ms, s) in enumerate(scores)]
    front = {(r.inference_ms, r.score.value) for r in figures.pareto_front(results(runs))}
    assert front == {point for point, on_front in scores.items() if on_front}


def test_a_figure_is_an_svg_element_a_png_and_a_pdf_file():
    figure = drawn(grid())["latency-1"]
    with figures.style():
        assert figures.svg(figure).startswith("<svg")
        assert figures.png(figure).startswith(b"\x89PNG")
        assert figures.pdf(figure).startswith(b"%PDF")
        assert figures.pdf(figure) == figures.pdf(figure)


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$", "a$b", "\\alpha"])
def test_a_name_is_text_and_no_mathematics(name):
    with figures.style():
        figure = figures.Figure(figsize=(1, 1))
        figure.add_subplot().set(title=name, xlabel=name, xticks=[0], xticklabels=[name])
        assert "<svg" in figures.svg(figure)
        assert figures.png(figure)


@pytest.mark.parametrize(("last", "scale"), [(0.6, "linear"), (0.01, "log")])
def test_tick_labels_of_a_loss_do_not_overprint_each_other(last, scale):
    losses = [{"step": step, "train/loss": value} for step, value in ((30, 1.0), (60, 0.7), (90, last))]
    figure = drawn([made_up([0.5], metrics=losses)])["train-loss-pusht_state"]
    (axes,) = figure.axes
    with figures.style():
        figures.png(figure)  # draws
    assert axes.get_yscale() == scale
    boxes = sorted((t.get_window_extent() for t in axes.get_yticklabels(which="both") if t.get_text()),
                   key=lambda box: box.y0)  # fmt: skip
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    assert {10, 20, 5, 25} & set(np.diff(axes.get_xticks()))

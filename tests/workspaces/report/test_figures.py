"""What is drawn where."""

import pytest

from tests.workspaces.report.conftest import IMAGE, made_up
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
    return " ".join(text.get_text() for box in figure.legends for text in box.get_texts())


def test_published_scores_are_those_of_the_runs_own_task_with_their_protocol():
    made = drawn([made_up([0.5], metrics=CURVE), made_up([0.5], metrics=CURVE, task=IMAGE)])
    state = legend(made["learning-curve-pusht_state-step"])
    assert "paper (keypoints), best checkpoint: 0.95 on 3 seeds × 50 episodes" in state
    assert "LeRobot" not in state
    image = legend(made["learning-curve-pusht_image-step"])
    assert "paper, mean of last 10: 0.84" in image
    assert "LeRobot's model card: 0.955 on 1 seed × 500 episodes" in image


def test_curves_run_over_steps_and_over_minutes():
    made = drawn([made_up([0.5], metrics=CURVE)])
    steps, minutes = (made[f"learning-curve-pusht_state-{x}"].axes[0].lines[0].get_xdata() for x in ("step", "minutes"))
    assert list(steps) == [1, 5, 10]
    assert list(minutes) == [1.0, 5.0, 10.0]


def test_the_mean_is_over_finished_seeds_alone():
    low = [{**row, "rollout/score": 0.0} for row in CURVE]
    runs = [made_up([0.5], metrics=CURVE, seed=0), made_up([0.5], metrics=low, seed=1)]
    killed = made_up([], metrics=[{**row, "rollout/score": 1.0} for row in CURVE], state="interrupted", path="killed")
    lines = drawn(runs, [killed])["learning-curve-pusht_state-step"].axes[0].lines
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


def test_a_figure_is_an_svg_element_and_a_png_file():
    figure = drawn(grid())["latency-1"]
    with figures.style():
        assert figures.svg(figure).startswith("<svg")
        assert figures.png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$", "a$b", "\\alpha"])
def test_a_name_is_text_and_no_mathematics(name):
    with figures.style():
        figure = figures.Figure(figsize=(1, 1))
        figure.add_subplot().set(title=name, xlabel=name, xticks=[0], xticklabels=[name])
        assert "<svg" in figures.svg(figure)
        assert figures.png(figure)

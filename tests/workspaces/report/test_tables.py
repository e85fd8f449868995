"""Who is averaged with whom, and who is compared with whom."""

import csv

import numpy as np
import pandas as pd
import pytest

from dp.tasks import Task
from dp.tasks.pusht.sources import OFFICIAL_SHA256
from tests.workspaces.report.conftest import made_up
from workspaces.report import page, tables
from workspaces.report.runs import Found
from workspaces.report.tables import Table


def test_a_setting_is_what_differs_and_a_seed_is_not():
    runs = [
        made_up([0.5], horizon=h, seed=s, device=d) for h, s, d in ((16, 0, "cpu"), (16, 1, "cuda"), (10, 0, "cpu"))
    ]
    assert tables.settings(runs) == [{"horizon": 16}, {"horizon": 16}, {"horizon": 10}]
    results = tables.results(runs)
    assert sorted((r.label, len(r.runs)) for r in results) == [("horizon=10", 1), ("horizon=16", 2)]


def test_runs_on_other_data_are_no_replicates_wherever_the_data_lie():
    ours, official = "3fa81bc0", OFFICIAL_SHA256[0]
    runs = [
        made_up([0.5], dataset__path=paths, dataset__sha256=sha256, seed=seed)
        for seed, paths, sha256 in (
            (0, ["/here/official.zarr"], official),
            (1, ["/there/pusht.zarr"], official),
            (0, ["data/teacher.zarr", "data/mine.zarr"], ours),
            (1, ["data/renamed.zarr"], ours),
        )
    ]
    labels = [tables.label(setting) for setting in tables.settings(runs)]
    assert labels == ["data=official"] * 2 + ["data=teacher + mine (3fa81b)"] * 2
    assert [len(r.runs) for r in tables.results(runs)] == [2, 2]


def test_the_arguments_of_another_class_are_not_listed_beside_it():
    ddim = {"scheduler___target_": "diffusers.DDIMScheduler", "scheduler__clip_sample": True}
    runs = [made_up([0.5], **ddim), made_up([0.5], scheduler___target_="diffusers.DPMSolverMultistepScheduler")]
    for run, target in zip(runs, ("diffusers.DDIMScheduler", "diffusers.DPMSolver"), strict=True):
        run.config["scheduler"] = {**run.config["scheduler"], "_target_": target}
    runs[0].config["scheduler"]["clip_sample"] = True
    assert [tables.label(s) for s in tables.settings(runs)] == ["scheduler=ddim", "scheduler=DPMSolver"]


def test_experiments_that_differ_in_everything_go_by_their_names():
    runs = [
        made_up([0.5], name="one", horizon=16, optimizer__lr=1e-4, workspace__num_steps=1),
        made_up([0.5], name="other", horizon=10, optimizer__lr=3e-4, workspace__num_steps=2),
    ]
    assert [tables.label(s) for s in tables.settings(runs)] == ["one", "other"]
    alike = [made_up([0.5], name="one", horizon=16), made_up([0.5], name="other", horizon=10)]
    assert [tables.label(s) for s in tables.settings(alike)] == ["horizon=16", "horizon=10"]


def test_seeds_are_averaged_and_protocols_never():
    runs = [
        made_up([0.2, 0.4], seed=0),
        made_up([0.6, 0.8], seed=1),
        made_up([1.0, 1.0, 1.0]),
        made_up([0, 0], max_steps=20),
    ]
    results = tables.results(runs)
    assert sorted((r.score.value, len(r.runs)) for r in results) == [(0.0, 1), (pytest.approx(0.5), 2), (1.0, 1)]
    table = tables.results_table(results, {})
    assert len(table.frame) == 3
    assert set(table.frame["protocol"]) == {
        "seeds 100000–100001, 300 steps", "seeds 100000–100002, 300 steps", "seeds 100000–100001, 20 steps",
    }  # fmt: skip
    assert (table.frame["score low"] <= table.frame["score"]).all()


def test_the_papers_protocol_has_its_name():
    assert str(made_up([0.5] * 50).protocol) == "paper-50"
    assert str(made_up([0.5] * 50, max_steps=200).protocol) == "seeds 100000–100049, 200 steps"


def test_a_run_made_twice_counts_once_and_the_earlier_one_is_listed():
    early = made_up([0.1], path="early", record={"ended": "2030-01-01T00:00:00+00:00"})
    late = made_up([0.9], path="late", record={"ended": "2030-01-02T00:00:00+00:00"})
    found = Found(finished=[late, early])
    assert tables.count(found) == [late]
    ((path, state, reason),) = found.left_out
    assert (str(path), state) == ("early", "superseded")
    assert "late" in reason


def test_a_training_counts_only_where_its_checkpoint_was_not_evaluated(sweep):
    import shutil

    from workspaces.report.runs import find

    assert {run.path.name for run in tables.count(find(sweep))} == {"h10", "h16-evaluated"}
    shutil.rmtree(sweep / "h16-evaluated")
    assert {run.path.name for run in tables.count(find(sweep))} == {"h10", "h16"}


def test_success_of_one_seed_has_an_interval_even_at_zero():
    (result,) = tables.results([made_up([0.5] * 10)])
    assert result.success.value == 0
    assert result.success.high > 0.2


def four():
    """Horizon 16 is better than 10 by 0.1 in every episode, with 10 inference steps and with 5."""
    rng = np.random.default_rng(0)
    hard = rng.uniform(0.2, 0.8, 40)
    runs = [
        made_up(list(hard + 0.1 * (h == 16) + 0.02 * (k == 10)), horizon=h, scheduler__num_inference_steps=k)
        for h in (16, 10) for k in (10, 5)
    ]  # fmt: skip
    return tables.results(runs)


def test_everybody_is_compared_with_the_best_on_the_same_episodes():
    comparisons = tables.compare(four(), None)
    assert {c.reference.label for c in comparisons} == {"horizon=16, num_inference_steps=10"}
    worst = next(c for c in comparisons if c.one.label == "horizon=10, num_inference_steps=5")
    assert worst.score.value == pytest.approx(-0.12)
    assert worst.score.high - worst.score.low < 0.12  # although the episodes differ by 0.6: they are paired
    assert worst.score.p_better < 0.01
    assert worst.n_episodes == 40


def test_a_baseline_of_some_keys_is_found_for_each_setting():
    comparisons = tables.compare(four(), {"horizon": 10})
    assert {(c.one.label, c.reference.label) for c in comparisons} == {
        ("horizon=16, num_inference_steps=10", "horizon=10, num_inference_steps=10"),
        ("horizon=16, num_inference_steps=5", "horizon=10, num_inference_steps=5"),
    }
    assert all(c.score.value == pytest.approx(0.1) for c in comparisons)
    assert len(tables.compare(four(), {"horizon": "10", "num_inference_steps": 5})) == 3


@pytest.mark.parametrize(
    ("baseline", "message"),
    [({"horizon": 12}, "none of the settings"), ({"depth": 3}, "do not differ in depth, but in: horizon")],
)
def test_a_baseline_that_no_setting_has_is_refused(baseline, message):
    with pytest.raises(ValueError, match=message):
        tables.compare(four(), baseline)


def test_protocols_that_share_env_seeds_are_compared_on_those():
    longer = made_up([0.1] * 10 + [0.4] * 20 + [0.1] * 10, first=99_990, horizon=10)
    runs = [made_up([0.5] * 20, horizon=16), longer, made_up([0.1] * 9, max_steps=20)]
    (comparison,) = tables.compare(tables.results(runs), None)
    assert comparison.n_episodes == 20
    assert comparison.score.value == pytest.approx(-0.1)


def test_a_training_is_quoted_as_the_paper_does():
    metrics = [{"step": i, "rollout/score": i / 20} for i in range(1, 21)] + [{"step": 21, "rollout/score": 0.3}]
    frame = tables.training_table([made_up([0.5], metrics=metrics)]).frame
    assert frame["best score †"][0] == 1.0
    assert frame["last score"][0] == 0.3
    assert frame["mean of last 10"][0] == pytest.approx(np.mean([*np.arange(12, 21) / 20, 0.3]))


def test_numbers_as_people_read_them():
    from dp.intervals import Estimate

    assert tables.interval(Estimate(0.975, 0.966, 0.982)) == "0.975 [0.966, 0.982]"
    assert tables.interval(Estimate(-0.1, -0.2, 0.05), sign=True) == "−0.100 [−0.200, +0.050]"
    assert tables.interval(Estimate(0.458, 0.415, 0.502), percent=True) == "45.8 % [41.5, 50.2]"
    assert [tables.probability(p) for p in (0.0, 0.5, 1.0)] == ["< 0.01", "0.50", "> 0.99"]


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "-"])
def test_a_spreadsheet_computes_no_text_of_a_run(text):
    frame = pd.DataFrame({"a": [text, "-0.5", "+1e-3", "x=1"], "b": [-1.5, 2.0, np.nan, 0.0], text: [1, 2, 3, 4]})
    header, *rows = csv.reader(page.csv(Table("t", frame, frame)).decode().splitlines())
    assert header == ["a", "b", f"'{text}"]
    assert rows[0][:2] == [f"'{text}", "-1.5"]
    assert [row[0] for row in rows[1:]] == ["-0.5", "+1e-3", "x=1"]


def test_success_that_the_environment_does_not_define_is_a_dash():
    runs = [made_up([0.5, 0.7], horizon=h) for h in (8, 16)]
    for run in runs:
        run.episodes[:] = [{**row, "success": None} for row in run.episodes]
    found = tables.results(runs)
    shown = tables.results_table(found, {})
    assert list(shown.shown["success [95 %]"]) == ["–", "–"]
    assert "Success: not defined by the environment" in shown.note
    compared = tables.comparison_table(tables.compare(found, None), None)
    assert list(compared.shown["success difference [95 %]"]) == ["–"]


def test_a_single_episode_has_a_score_and_no_interval():
    (result,) = tables.results([made_up([0.185])])
    assert tables.interval(result.score) == "0.185"


def test_a_table_is_safe_in_a_spreadsheet_in_markdown_and_in_latex():
    text = "=cmd|'x' & $a_1$ <b> 50 %"
    frame = pd.DataFrame([{"setting": text, "score": -0.5}])
    table = tables.Table("Title", frame, frame, "note")
    assert b"'=cmd" in page.csv(table)
    assert b"-0.5" in page.csv(table)
    assert b"=cmd\\|'x'" in page.markdown(table)
    assert b"<b>" not in page.markdown(table)
    latex = page.latex(table).decode()
    assert r"=cmd|'x' \& \$a\_1\$ $<$b$>$ 50 \% & -0.5 \\" in latex
    assert latex.count("rule") == 3


def test_quantities_stand_with_the_scores_where_another_task_has_none():
    own = Task("reach", {"obs": {"state": {"shape": [3]}}, "action": {"shape": [1]}})
    other = made_up([-5.0, -6.0], task=own)
    for row in other.episodes:
        del row["final_coverage"]
    table = tables.results_table(tables.results([other, made_up([0.5, 1.0])]), {})
    columns = list(table.shown)
    assert columns.index("final coverage [95 %]") == columns.index("success [95 %]") + 1
    assert list(table.shown["final coverage [95 %]"]).count("–") == 1
    assert tables.number(-5.25, 1) == "−5.2"


def test_a_result_that_used_the_true_state_says_so():
    plain = made_up([0.5, 1.0], guidance__n=1)
    privileged = made_up([1.0, 1.0], guidance__n=16, privileged=True)
    unguided, both, guided = (
        tables.results_table(tables.results(runs), {}) for runs in ([plain], [plain, privileged], [privileged])
    )
    assert "true state" not in unguided.note + str(unguided.shown.columns)
    assert both.shown["sees the true state"].tolist() == ["yes, which no robot does", "no"]
    assert "yes, which no robot does" in guided.note

"""Two policies on the same episodes: `workspace=compare`, over made-up runs and over real ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from dp.intervals import paired_difference
from tests.workspaces.report.conftest import CONFIGS, IMAGE, made_up
from workspaces import build, compare
from workspaces.report.runs import Found


def comparison(*overrides: str) -> compare.CompareWorkspace:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        workspace = build.workspace(compose("config", ["workspace=compare", *overrides]))
    assert isinstance(workspace, compare.CompareWorkspace)
    with workspace:
        workspace.run()
    return workspace


@pytest.fixture
def between(monkeypatch, tmp_path):
    """The content of compare.json of made-up runs."""

    def call(a: list, b: list) -> dict:
        held = {"a": a, "b": b}
        for name in held:
            (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(compare.runs, "find", lambda path, *_: Found(finished=held[path.name]))
        comparison(f"a={tmp_path}/a", f"b={tmp_path}/b", f"run_dir={tmp_path}/compared")
        return json.loads((tmp_path / "compared/compare.json").read_text())

    return call


def test_the_difference_is_paired_on_the_episodes_that_both_have(between):
    a, b = np.random.default_rng(0).uniform(0, 1, (2, 30))
    about = between([made_up([*a], path="a")], [made_up([*b[5:]], first=100_005, path="b", horizon=10)])
    value, low, high, p = paired_difference(a[None, 5:], b[None, 5:], (0.0, 1.0))
    found = about["differences"]["score"]
    assert found == {"difference": value, "ci_low": low, "ci_high": high, "p_a_better": p}
    assert about["n_episodes"] == 25
    assert about["protocol"]["seeds"] == [100_005, 100_029]
    assert about["differences"]["final_coverage"]["difference"] == pytest.approx(value / 2)


def test_training_seeds_count_as_replicates_and_observations_may_differ(between):
    a = [made_up([0.5, 0.9, 0.7], path=f"a{seed}", seed=seed) for seed in range(2)]
    about = between(a, [made_up([0.1, 0.2, 0.3], path="b", task=IMAGE)])
    assert about["a"]["runs"] == ["a0", "a1"]
    assert about["differences"]["score"]["difference"] == pytest.approx(0.5)
    assert about["differences"]["score"]["p_a_better"] > 0.9


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_steps": 200}, "env_runner.max_steps is 300 for a and 200 for b"),
        ({"first": 5}, "fewer than two env seeds in common: 100000-100002 and 5-7"),
        ({"verb": "evaluate", "horizon": 8, "other": True}, r"b=\S+ holds 2 results, expected one: horizon=8"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(between, changed, said):
    other = [made_up([0.0, 0.1, 0.2], path="c")] if changed.pop("other", False) else []
    with pytest.raises(ValueError, match=said):
        between([made_up([0.1, 0.2, 0.3])], [made_up([0.2, 0.3, 0.4], path="b", **changed), *other])


def test_real_runs_make_one_page_with_videos_of_both(sweep: Path, tmp_path: Path):
    done = comparison(f"a={sweep}/h16-evaluated", f"b={sweep}/h10", f"run_dir={tmp_path}/compared")
    page = done.html.read_text()
    assert "h16-evaluated" in page
    assert '<td class="text">horizon</td>' in page
    assert page.count("<video") == 2 * len(
        [seed for seed in range(100_000, 100_010)
         if all(list((sweep / name / "media").glob(f"*-{seed}.mp4")) for name in ("h16-evaluated", "h10"))]
    )  # fmt: skip
    for name in ("results", "difference", "settings", "episodes"):
        assert (tmp_path / f"compared/tables/{name}.csv").is_file()


def test_a_side_that_is_missing_or_empty_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="set b=DIR"):
        comparison(f"a={tmp_path}")
    with pytest.raises(ValueError, match=r"a=\S+/nowhere, expected a directory"):
        comparison(f"a={tmp_path}/nowhere", f"b={tmp_path}")
    with pytest.raises(ValueError, match="are the same directory"):
        comparison(f"a={tmp_path}", f"b={tmp_path}/.")

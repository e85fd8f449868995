"""What counts as a run, and what is listed instead."""

import json
import shutil

import pytest

from workspaces.report.runs import find


def rewrite(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def reasons(found):
    return {left.path.name: (left.state, left.reason) for left in found.left_out}


def test_finished_runs_are_found_at_any_depth_with_the_test_episodes_only(sweep):
    found = find(sweep.parent)
    runs = sorted((run.path.name, run.verb) for run in found.finished)
    assert runs == [("h10", "train"), ("h16", "train"), ("h16-evaluated", "evaluate")]
    assert found.left_out == []
    training = next(run for run in found.finished if run.path.name == "h16")
    assert [row["seed"] for row in training.episodes] == [100000, 100001, 100002]  # and not seed 0 of the training
    assert len(json.loads((sweep / "h16/rollouts/24.json").read_text())) == 4
    assert find(sweep / "h16").finished[0].path == sweep / "h16"


def test_an_evaluation_has_the_configuration_of_its_training(sweep):
    config = sweep / "h16/config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 7").replace("lr: 0.0006", "lr: 0.5"))
    run = next(run for run in find(sweep).finished if run.path.name == "h16-evaluated")
    assert run.trained_in == (sweep / "h16").resolve()
    assert (run.config["seed"], run.replicate) == (7, "seed 7")
    assert run.config["optimizer"]["lr"] == 0.5
    assert run.config["workspace"]["num_steps"] == 24
    assert run.config["scheduler"]["num_inference_steps"] == 2


def test_an_evaluation_whose_training_is_gone_knows_its_settings(sweep):
    shutil.rmtree(sweep / "h16")
    run = next(run for run in find(sweep).finished if run.path.name == "h16-evaluated")
    assert run.trained_in is None
    assert run.replicate == "seed 0"
    assert run.config["horizon"] == 16


def test_a_killed_run_is_interrupted_and_has_a_curve_but_no_result(sweep):
    rewrite(sweep / "h16/run.json", state="running")  # as SIGKILL leaves it: nobody has its lock
    with (sweep / "h16/metrics.jsonl").open("a") as file:
        file.write('{"step": 25, "tra')
    found = find(sweep)
    assert reasons(found) == {"h16": ("interrupted", "at step 24 of 24")}
    assert [run.path.name for run in found.unfinished] == ["h16"]
    assert "h16" not in [run.path.name for run in found.finished]


def test_a_failed_run_is_listed_with_its_error(sweep):
    rewrite(sweep / "h16/run.json", state="failed", error="training diverged at step 3")
    rewrite(sweep / "h10/run.json", state="failed", error=None)
    (sweep / "h10/run.log").write_text("one\ntwo\nKilled by cosmic rays\n")
    found = reasons(find(sweep))
    assert found["h16"] == ("failed", "training diverged at step 3")
    assert found["h10"][0] == "failed"
    assert found["h10"][1].endswith("Killed by cosmic rays")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("h16-evaluated/evaluation.json", '{"score": 0.', "evaluation.json is not JSON"),
        ("h16-evaluated/evaluation.json", "{}", "without evaluation.json"),
        ("h16-evaluated/run.json", "not json", "run.json is damaged"),
        ("h16/config.yaml", "just text", "config.yaml holds no configuration"),
        ("h16/metrics.jsonl", '{"step": 1}\nnoise\n{"step": 2}\n', "line 2 is damaged"),
        ("h16/rollouts/24.json", "[]", "expected one episode for each of the seeds 100000–100002"),
        ("h16/rollouts/24.json", None, "24.json"),
    ],
)
def test_a_damaged_run_is_listed_and_the_others_count(sweep, file, content, reason):
    path = sweep / file
    path.unlink() if content is None else path.write_text(content)
    found = find(sweep)
    state, said = reasons(found)[file.partition("/")[0]]
    assert state == "damaged"
    assert reason in said
    assert "h10" in {run.path.name for run in found.finished}


def test_jobs_of_a_sweep_that_never_began_are_listed(sweep):
    jobs = [{"dir": name, "overrides": [], "verb": "train"} for name in ("h16", "h12", "h14")]
    (sweep / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    (sweep / "h14").mkdir()
    found = reasons(find(sweep))
    assert found == {"h12": ("waiting", "no such directory"), "h14": ("waiting", "not begun")}


def test_a_run_from_before_there_was_run_json_counts_if_its_results_are_there(sweep):
    (sweep / "h16/run.json").unlink()
    (sweep / "h10/run.json").unlink()
    (sweep / "h10/rollouts/24.json").unlink()
    found = find(sweep)
    assert "h16" in [run.path.name for run in found.finished]
    assert reasons(found) == {"h10": ("interrupted", "at step 24 of 24")}


def test_a_directory_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        find(tmp_path)
    with pytest.raises(ValueError, match="expected a directory"):
        find(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.yaml", "evaluation.json", "metrics.jsonl", "run.json", "run.log"])
def test_a_link_out_of_a_run_directory_is_not_followed(sweep, tmp_path, name):
    run = next(p for p in sorted(sweep.iterdir()) if (p / name).exists())
    secret = tmp_path / "secret"
    secret.write_bytes((run / name).read_bytes())
    (run / name).unlink()
    (run / name).symlink_to(secret)
    found = find(sweep)
    if name != "run.log":  # read only of a run that failed
        assert [left.reason for left in found.left_out if left.path == run and "link" in left.reason]


def test_a_video_that_is_a_link_is_not_shown(sweep, tmp_path):
    run = find(sweep).finished[0]
    video = next((run.path / "media").glob("*.mp4"))
    seed = int(video.stem.partition("-")[2])
    video.rename(tmp_path / "secret.mp4")
    video.symlink_to(tmp_path / "secret.mp4")
    assert run.video(seed) is None


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "a/b", "", None])
def test_a_sweep_names_only_directories_of_its_own(sweep, name):
    (sweep / "sweep.json").write_text(json.dumps({"jobs": [{"dir": name}]}))
    found = find(sweep)
    (left,) = found.left_out
    assert (left.path.name, left.state) == ("sweep.json", "damaged")
    assert len(found.finished) == 3


@pytest.mark.parametrize("step", ["../../secret/private", "12", [1], -1, True])
def test_a_step_that_is_no_number_leads_nowhere(sweep, step):
    file = sweep / "h16-evaluated/evaluation.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "step": step}))
    assert "step" in reasons(find(sweep))["h16-evaluated"][1]


def test_a_training_far_away_is_not_read(sweep, tmp_path_factory):
    far = tmp_path_factory.mktemp("far") / "run"
    shutil.copytree(sweep / "h16", far)
    file = sweep / "h16-evaluated/evaluation.json"
    elsewhere = {**json.loads(file.read_text()), "checkpoint": str(far / "checkpoints/last.pt")}
    file.write_text(json.dumps(elsewhere))
    run = next(run for run in find(sweep).finished if run.path.name == "h16-evaluated")
    assert run.trained_in is None

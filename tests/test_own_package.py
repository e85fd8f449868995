"""A package of the user's own, outside this repository: a task, an encoder, an objective and a scheduler.

It trains, rolls out, resumes, evaluates, sweeps, collects, is inspected and reported, and nothing here was edited for
it. `tests/toylab` is the package; every test runs a copy of it in another place, in another process.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr

from tests.cli import RUN, run_py
from tests.workspaces.conftest import assert_same_run
from workspaces.trust import check_targets

PUSHT = ("PushT", "pusht", "0.95", "coverage", "paper", "RandomState", "block", " T ")
"""What nothing about another task may say."""


def run(place: Path, *overrides: str, configs: bool = True, code: int = 0) -> subprocess.CompletedProcess[str]:
    flags = [o for o in overrides if o.startswith("-")]
    typed = [*flags, *(["--config-dir", str(place / "toylab/configs")] if configs else [])]
    rest = (o for o in overrides if o not in flags)
    result = run_py(*typed, *rest, cwd=place, env={**os.environ, "PYTHONPATH": str(place)})
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


TRAIN = ("+experiment=reach", "dataset.path=demos.zarr", "device=cpu", "n_threads=1")
REPLAY = ("+experiment=reach", "workspace=evaluate", "workspace.baseline=replay", "task.shape_meta.obs.wrist.key=wrist",
          "device=cpu", "logger.mode=disabled", "env_runner.n_workers=0", "env_runner.n_episodes=3")  # fmt: skip
EVALUATE = (
    "workspace=evaluate",
    "device=cpu",
    "logger.mode=disabled",
    "env_runner.n_workers=0",
    "env_runner.n_videos=1",
)


@pytest.fixture(scope="session")
def trained(place: Path) -> Path:
    run(place, *TRAIN, "run_dir=trained")
    return place / "trained"


def says_nothing_of_pusht(text: str) -> None:
    assert [word for word in PUSHT if word in text] == []


def text_of(page: Path) -> str:
    """What a report says, without its pictures."""
    body = page.read_text().partition("<body>")[2].partition("<script>")[0]
    return "".join(part for part in body.split('"') if not part.startswith("data:"))


def test_it_trains_and_rolls_out(trained):
    rows = json.loads((trained / "rollouts/12.json").read_text())
    assert [set(row) for row in rows] == [
        {"seed", "max_reward", "success", "length", "final_distance", "final_reach"}
    ] * 4
    assert [row["seed"] for row in rows] == [500, 501, 502, 503]
    assert all(row["length"] == 12 for row in rows)  # success does not end an episode
    metrics = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert "rollout/final_distance" in metrics[-1]
    assert all(row["max_reward"] < 0 for row in rows)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["env_runner"]["protocol"] == "touch-4"
    says_nothing_of_pusht((trained / "run.json").read_text())


def test_it_resumes_to_the_bit(trained, place):
    command = [sys.executable, str(RUN), "--config-dir", str(place / "toylab/configs"), *TRAIN, "run_dir=resumed"]
    process = subprocess.Popen(
        command, cwd=place, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(place)}
    )
    while not (place / "resumed/checkpoints/last.pt").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    run(place, *TRAIN, "run_dir=resumed")
    assert_same_run(place / "resumed", trained)


def trusts(done: subprocess.CompletedProcess[str], announced: str) -> bool:
    """Whether the command that `done` prints after `announced` allows the package."""
    commands = [line for line in done.stderr.splitlines() if announced in line]
    return bool(commands) and all("trust=[toylab]" in line for line in commands)


def test_it_evaluates_when_the_package_is_trusted_and_not_before(trained, place):
    refused = run(place, *EVALUATE, "checkpoint=trained", configs=False, code=1)
    assert "trust=[toylab]" in refused.stderr
    assert len(refused.stderr.splitlines()) <= 2
    done = run(place, *EVALUATE, "checkpoint=trained", "trust=[toylab]", "run_dir=evaluated", configs=False)
    assert trusts(done, "report: ")
    evaluation = json.loads((place / "evaluated/evaluation.json").read_text())
    assert evaluation["episodes"] == json.loads((trained / "rollouts/12.json").read_text())
    assert evaluation["protocol"]["name"] == "touch-4"
    assert evaluation["protocol"]["score"].startswith("mean over episodes of the best closeness")
    assert "final_distance" in evaluation
    assert next((place / "evaluated/media").glob("*.mp4")).stat().st_size > 0
    says_nothing_of_pusht((place / "evaluated/evaluation.json").read_text())


def test_protocols_come_from_the_task(trained, place):
    run(place, *EVALUATE, "checkpoint=trained", "trust=[toylab]", "run_dir=more", "env_runner.protocol=touch-6",
        configs=False)  # fmt: skip
    evaluation = json.loads((place / "more/evaluation.json").read_text())
    assert (evaluation["n_episodes"], evaluation["protocol"]["name"]) == (6, "touch-6")
    unknown = run(place, *EVALUATE, "checkpoint=trained", "trust=[toylab]", "env_runner.protocol=paper-50", code=1)
    assert "touch-4, touch-6" in unknown.stderr


def test_a_runner_of_its_own_need_not_disturb(place):
    run(place, *TRAIN, "~env_runner.n_late", "~env_runner.kick", "workspace.num_steps=2", "run_dir=undisturbed")
    kicked = run(place, *TRAIN, "env_runner.kick=1", "env_runner.max_steps=60", "run_dir=kicked", code=1)
    assert "the environment has no method disturb" in kicked.stderr


def test_it_sweeps_over_training_and_sampling(place):
    swept = run(place, "-m", *TRAIN, "horizon=8,10", "scheduler.num_inference_steps=2,3", "workspace.num_steps=6",
        "hydra.sweep.dir=sweep")  # fmt: skip
    evaluations = sorted(place.glob("sweep/*/evaluation.json"))
    assert len(evaluations) == 4
    assert trusts(swept, "report: ")
    report = run(place, "workspace=report", "runs=sweep", "trust=[toylab]", configs=False)
    says_nothing_of_pusht(report.stderr)
    says_nothing_of_pusht(text_of(place / "sweep/report/report.html"))


def test_its_report_speaks_of_its_own_task(trained, place):
    run(place, "workspace=report", "runs=trained", "trust=[toylab]", "run_dir=report", configs=False)
    html = (place / "report/report.html").read_text()
    assert "closeness" in html
    assert "touches the goal" in html
    says_nothing_of_pusht(text_of(place / "report/report.html"))
    run(place, "workspace=report", "runs=trained", "run_dir=report-of-a-stranger", configs=False)
    assert (place / "report-of-a-stranger/report.html").is_file()


def test_a_policy_of_it_demonstrates(trained, place):
    run(place, "workspace=collect", "collector=checkpoint", "checkpoint=trained", "trust=[toylab]", "device=cpu",
        "workspace.n_episodes=3", "workspace.start_seed=10", "workspace.filter.success_only=false",
        "workspace.path=collected.zarr", "env_runner.n_workers=0", configs=False)  # fmt: skip
    store = zarr.open_group(str(place / "collected.zarr"), mode="r")
    assert store["data/wrist"].shape[1:] == (40, 32, 3)
    assert store["meta/seed"][:].tolist() == [10, 11, 12]
    run(place, *TRAIN[:1], "dataset.path=collected.zarr", "task.shape_meta.obs.wrist.key=wrist", "run_dir=again",
        "workspace.num_steps=2", "device=cpu", "dataset.val_ratio=0",
        "env_runner.n_train_episodes=3")  # fmt: skip
    # The store knows the seeds of its episodes: they are rolled out in training, and can be replayed.
    rolled_out = json.loads((place / "again/rollouts/2.json").read_text())
    assert [row["seed"] for row in rolled_out][-3:] == [10, 11, 12]
    run(place, *REPLAY, "dataset.path=collected.zarr", "env_runner.start_seed=10", "run_dir=replayed")
    replayed = json.loads((place / "replayed/evaluation.json").read_text())["episodes"]
    ends = store["meta/episode_ends"][:]
    assert [row["length"] for row in replayed] == np.diff(ends, prepend=0).tolist()
    assert [row["success"] for row in replayed] == store["meta/success"][:].tolist()


def test_its_simulator_may_run_in_another_interpreter(trained, place):
    """Rollouts are the same, and a file that names such a simulator runs nothing of a package that is not trusted."""
    elsewhere = ("task=reach_elsewhere", f"task.env.python={sys.executable}", "run_dir=elsewhere")
    run(place, *TRAIN, *elsewhere, "env_runner.n_workers=1")
    found = [
        [json.loads(line).get("rollout/score") for line in (place / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("trained", "elsewhere")
    ]
    assert found[0] == found[1] != [None] * len(found[0])
    config = yaml.safe_load((place / "elsewhere/config.yaml").read_text())
    with pytest.raises(ValueError, match=r"task\.env\.target=toylab\.reach:ReachEnv, which is not to be trusted"):
        check_targets(config, places=["task.env"])
    with pytest.raises(ValueError, match=r"the program task\.env\.python=\S+python\S*, which is not to be trusted"):
        check_targets(config, ["toylab"], places=["task.env"])
    check_targets(config, ["toylab", sys.executable], places=["task.env"])
    # Rounds trust what the user typed, and read their own checkpoints.
    rounds = run(place, "workspace=improve", *TRAIN, *elsewhere[:2], "checkpoint=elsewhere", "run_dir=improved",
        'workspace.collect="collector=takeover workspace.n_episodes=1 workspace.start_seed=20 workspace.n_workers=1 '
        'env_runner.max_steps=6"', "workspace.train='workspace.num_steps=2'",
        "workspace.evaluate='env_runner.n_episodes=1 env_runner.start_seed=600'")  # fmt: skip
    assert rounds.stderr.splitlines()[-1].endswith(f"'trust=[{sys.executable},toylab]'")  # of the report
    assert (place / "improved/round-1-evaluate/evaluation.json").is_file()


def test_its_expert_takes_over(trained, place):
    run(place, "workspace=collect", "collector=takeover", "checkpoint=trained", "trust=[toylab]", "device=cpu",
        "workspace.n_episodes=2", "workspace.start_seed=20", "workspace.path=takeovers.zarr", "workspace.n_workers=2",
        "env_runner.n_workers=0", "env_runner.max_steps=6", configs=False)  # fmt: skip
    store = zarr.open_group(str(place / "takeovers.zarr"), mode="r")
    assert store["meta/success"][:].all()
    # It begins where the policy stalled, not where its seed does.
    refused = run(place, *REPLAY, "dataset.path=takeovers.zarr", "run_dir=none", code=1)
    assert "no demonstration starts from its seed's initial state" in refused.stderr
    assert store["data/front"].shape[1:] == (48, 64, 3)


def test_a_critic_learns_from_how_its_episodes_end(trained, place):
    critic = run(place, "workspace=critic", "checkpoint=trained", "trust=[toylab]", "device=cpu", "run_dir=critic",
        "workspace.n_episodes=4", "workspace.num_steps=20", "workspace.width=16", "env_runner.n_workers=0",
        configs=False)  # fmt: skip
    assert "1 plans each" in critic.stderr
    assert trusts(critic, "evaluate with it: ")
    with np.load(next((place / "critic/lessons").glob("*.npz"))) as lessons:
        assert np.isfinite(lessons["costs"]).all()
        assert lessons["costs"].max() <= 12
    run(place, "workspace=evaluate", "checkpoint=trained", "trust=[toylab]", "device=cpu", "run_dir=guided",
        "guidance=best_of_n", "guidance.path=critic", "guidance.n=3", "env_runner.n_workers=0",
        configs=False)  # fmt: skip
    evaluation = json.loads((place / "guided/evaluation.json").read_text())
    assert evaluation["privileged"] is False


def test_it_is_inspected(place):
    said = run(place, "workspace=inspect", *TRAIN).stdout
    assert "6 episodes" in said
    says_nothing_of_pusht(said.partition("data")[2])


def test_its_scheduler_trains_and_samples(place):
    run(place, *TRAIN, "scheduler=gentle", "objective=diffusion", "run_dir=gentle", "workspace.num_steps=12")
    run(place, *EVALUATE, "checkpoint=gentle", "trust=[toylab]", "run_dir=gently", configs=False)
    evaluation = json.loads((place / "gently/evaluation.json").read_text())
    assert evaluation["episodes"] == json.loads((place / "gentle/rollouts/12.json").read_text())
    assert evaluation["settings"]["scheduler"]["_target_"] == "toylab.networks.Gentle"


def test_without_a_simulator_it_sweeps_over_sampling_too(place):
    run(place, "-m", *TRAIN, "task.env=null", "scheduler.num_inference_steps=2,3", "workspace.num_steps=3",
        "hydra.sweep.dir=without-env")  # fmt: skip
    runs = [json.loads(file.read_text()) for file in place.glob("without-env/*/run.json")]
    assert [(run["verb"], run["state"]) for run in runs] == [("train", "finished")] * 2


def test_a_file_of_the_name_of_one_of_ours_is_refused(place, tmp_path):
    shutil.copytree(place / "toylab/configs", tmp_path / "configs")
    shutil.copy(tmp_path / "configs/objective/own_flow.yaml", tmp_path / "configs/objective/flow.yaml")
    result = run_py("--config-dir", str(tmp_path / "configs"), *TRAIN, cwd=place)
    assert result.returncode == 1
    assert "objective/flow.yaml is not read: dp has a configuration objective/flow.yaml, too" in result.stderr


def test_nothing_here_was_edited_for_it(place):
    for folder in ("dp", "workspaces", "configs"):
        for file in (RUN.parent / folder).rglob("*.[py][ya]*"):
            assert "toylab" not in file.read_text(errors="ignore"), file

"""A training run: what it leaves behind, and what killing, stopping and breaking it does."""

import contextlib
import functools
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dp import engines
from dp.data.recording import DemonstrationStore
from dp.tasks.pusht.demonstration import FACTS, FRAMES
from dp.tasks.pusht.sources import BUNDLED_PATH
from tests.cli import Forks
from tests.workspaces.conftest import assert_same_run, metrics
from tests.workspaces.wander import Wander
from workspaces import build
from workspaces.errors import Interrupted
from workspaces.signals import Signals
from workspaces.train import TrainWorkspace

KILLS = int(os.environ.get("DP_TEST_KILLS", "2"))


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Where the uninterrupted run lives; made by the first test that needs it."""
    return tmp_path_factory.mktemp("reference") / "run"


@pytest.fixture
def uninterrupted(reference, run):
    if not reference.is_dir():
        result = run(f"run_dir={reference}")
        assert result.returncode == 0, result.stderr
    return reference


def test_a_run_leaves_everything_that_the_interface_promises(uninterrupted):
    names = {str(p.relative_to(uninterrupted)) for p in uninterrupted.rglob("*") if p.is_file()}
    assert {"config.yaml", "metrics.jsonl", "run.log", "checkpoints/last.pt"} <= names
    assert {"rollouts/12.json", "rollouts/24.json", "media/12-100000.mp4", "media/24-100000.mp4"} <= names
    rows = json.loads((uninterrupted / "rollouts/24.json").read_text())
    assert [row["seed"] for row in rows] == [100000, 100001, 100002, 1]  # demonstration 0 is held out
    assert set(rows[0]) == {"seed", "max_reward", "success", "length", "final_coverage"}

    written = metrics(uninterrupted)
    keys = set().union(*written)
    assert {"train/loss", "train/lr", "train/grad_norm", "val/loss", "val/action_mse"} <= keys
    assert {"rollout/score", "rollout/score_ci_low", "rollout/score_ci_high", "rollout/train_score"} <= keys
    assert {"rollout/success", "rollout/success_ci_low", "rollout/success_ci_high"} <= keys
    assert [row["step"] for row in written if "train/loss" in row] == [5, 10, 15, 20, 24]
    assert [row["step"] for row in written if "val/loss" in row] == [8, 16, 24]
    best = [p.name for p in (uninterrupted / "checkpoints").glob("best-*")]
    scores = {row["step"]: row["rollout/score"] for row in written if "rollout/score" in row}
    assert sorted(best) == [f"best-{step:06d}-{score:.3f}.pt" for step, score in scores.items()]


def test_rollouts_from_training_demonstrations_leave_out_those_that_do_not_start_from_their_seed(run, tmp_path):
    with DemonstrationStore(tmp_path / "wander.zarr", {}, FRAMES, FACTS) as store:
        store.append([d for d in map(Wander(30), range(1001, 1010)) if d is not None], "wander")
    quick = ["dataset.val_ratio=0.15", "workspace.num_steps=2", "env_runner.n_episodes=1"]
    result = run("dataset.path=wander.zarr", f"run_dir={tmp_path}/run", *quick, "env_runner.n_train_episodes=9")
    assert result.returncode == 0, result.stderr
    seeds = {row["seed"] for row in json.loads((tmp_path / "run/rollouts/2.json").read_text())}
    assert len(seeds) >= 4
    assert seeds <= {100000, 1001, 1003, 1004, 1006, 1007, 1009}  # 1002 and 1008 are divided by 3


def test_training_learns(uninterrupted):
    losses = [row["train/loss"] for row in metrics(uninterrupted) if "train/loss" in row]
    assert losses[-1] < 0.9 * losses[0]


def test_killed_again_and_again_it_ends_as_if_it_had_never_been(uninterrupted, command, tmp_path):
    """Every other time at a call that writes, the rest at random moments; resumed by both commands in turn."""
    rng, kills, runs, places = random.Random(0), 0, 0, Counter()
    log = tmp_path / "log"
    with contextlib.closing(Forks()) as forks:
        fork = functools.partial(forks.run, cwd=tmp_path, stdout=str(log), stderr=str(log), counts=True)
        whole = fork(command(f"run_dir={tmp_path}/whole")[2:])
        assert_same_run(uninterrupted, tmp_path / "whole")
        while kills < KILLS:
            run_dir, finished, runs = tmp_path / f"killed-{runs}", False, runs + 1
            while not finished:
                alone = kills % 4 < 2 and (run_dir / "config.yaml").is_file()
                arguments = [f"run_dir={run_dir}"] if alone else command(f"run_dir={run_dir}")[2:]
                deaths = {"at_call": rng.randrange(whole["calls"])}, {"after_s": rng.uniform(0, whole["seconds"])}
                life = fork(arguments, **(deaths[kills % 2] if kills < KILLS else {}))
                finished = life["returncode"] == 0
                assert finished or life["returncode"] == -signal.SIGKILL, log.read_text()
                kills += not finished
                places[life["where"]] += not finished
            assert_same_run(uninterrupted, run_dir)
    assert kills == KILLS
    sys.stdout.write("\n".join([f"{runs} runs, killed at:", *(f"{n} {place}" for place, n in places.most_common())]))


def _last_step(run_dir: Path) -> int:
    """What the metrics have reached; -1 before there are any."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return max([int(json.loads(line)["step"]) for line in lines if line.endswith("}")], default=-1)


def _wait(condition, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_a_signal_saves_says_how_to_go_on_and_loses_nothing(uninterrupted, command, run, tmp_path, number, code, name):
    run_dir = tmp_path / "stopped"
    process = subprocess.Popen(command(f"run_dir={run_dir}"), stderr=subprocess.PIPE, text=True)
    _wait(lambda: _last_step(run_dir) >= 8)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in stderr
    step = torch.load(run_dir / "checkpoints/last.pt", weights_only=True)["step"]
    assert f"{name}: saved at step {step}. To go on: python run.py" in stderr
    assert f"run_dir={run_dir}" in stderr

    assert run(f"run_dir={run_dir}").returncode == 0
    assert_same_run(uninterrupted, run_dir)


def test_a_signal_while_the_first_step_compiles_ends_the_run_at_once(monkeypatch):
    workspace = SimpleNamespace(
        signals=Signals(), state=SimpleNamespace(evaluated=True, step=0), config={}, train_windows=[], device=None
    )
    monkeypatch.setattr(build, "loader", lambda *_: contextlib.nullcontext())

    def train(loader):
        with workspace.signals.interrupting():
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("it went on")

    workspace._train = train
    with pytest.raises(Interrupted, match="Ctrl-C: stopped before the first step"):
        TrainWorkspace._train_or_stop(workspace)
    assert not workspace.signals.interruptible


def test_a_finished_run_is_not_run_again(uninterrupted, run):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    result = run(f"run_dir={uninterrupted}")
    assert result.returncode == 0, result.stderr
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_another_run_is_not_taken_up(uninterrupted, run):
    result = run(f"run_dir={uninterrupted}", "horizon=12", "dataset.path=nowhere")  # it is said before data are read
    assert result.returncode != 0
    assert "horizon=16 there, 12 here" in result.stderr
    assert "Traceback" not in result.stderr


def test_other_demonstrations_are_not_taken_up(uninterrupted, run):
    """Wherever they lie, what counts is what they are."""
    result = run(f"run_dir={uninterrupted}", f"dataset.path={BUNDLED_PATH}")
    assert result.returncode == 1
    assert "dataset.sha256=" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_second_process_is_refused(command, run, tmp_path):
    run_dir = tmp_path / "run"
    first = subprocess.Popen(command(f"run_dir={run_dir}", "workspace.num_steps=100000"), stderr=subprocess.DEVNULL)
    try:
        _wait(lambda: _last_step(run_dir) >= 0)
        second = run(f"run_dir={run_dir}", "workspace.num_steps=100000")
    finally:
        first.kill()
        first.wait()
    assert second.returncode != 0
    assert "in use by another process" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_diverging_run_names_the_step_and_keeps_the_last_good_checkpoint(run, tmp_path):
    run_dir = tmp_path / "run"
    result = run(f"run_dir={run_dir}", "optimizer.lr=1e9", "workspace.max_grad_norm=inf")
    assert result.returncode == 1
    assert "training diverged at step" in result.stderr
    assert "Traceback" not in result.stderr
    weights = torch.load(run_dir / "checkpoints/last.pt", weights_only=True)["policy"]
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_a_full_disk_loses_nothing_that_was_saved(command, run, tmp_path):
    run_dir = tmp_path / "run"
    assert run(f"run_dir={run_dir}", "workspace.num_steps=6").returncode == 0
    last = run_dir / "checkpoints/last.pt"
    before, size = last.read_bytes(), last.stat().st_size
    arguments = command(f"run_dir={run_dir}", "workspace.num_steps=20")
    limit = size // 2  # no file may grow beyond: writing a checkpoint fails in the middle, as on a full disk

    def fill_the_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = subprocess.run(arguments, preexec_fn=fill_the_disk, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "was not saved, but the one before is intact" in result.stderr
    assert result.stderr.endswith(f"To go on: python run.py run_dir={run_dir}\n")
    assert "Traceback" not in result.stderr
    assert last.read_bytes() == before
    assert not list(run_dir.rglob("*.tmp"))


def test_accumulated_gradients_are_those_of_the_large_batch(run, tmp_path):
    """Two halves of 8 visit the windows of one batch of 16, so the learning is close though the noise differs."""
    run_dir = tmp_path / "accumulated"
    result = run(f"run_dir={run_dir}", "workspace.batch_size=8", "workspace.grad_accumulation=2")
    assert result.returncode == 0, result.stderr
    state = torch.load(run_dir / "checkpoints/last.pt", weights_only=True)
    assert state["step"] == 24
    assert state["ema"]["num_updates"] == 24
    losses = [row["train/loss"] for row in metrics(run_dir) if "train/loss" in row]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("overrides", [["workspace.loader=dataloader", "workspace.n_loader_workers=1"]])
def test_the_dataloader_trains_the_same_policy(uninterrupted, run, tmp_path, overrides):
    run_dir = tmp_path / "streamed"
    result = run(f"run_dir={run_dir}", *overrides)
    assert result.returncode == 0, result.stderr
    assert_same_run(uninterrupted, run_dir)


@pytest.mark.parametrize(
    ("engine", "device"),
    [
        ("compile", "cpu"),
        pytest.param("graph", "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")),
    ],
)
def test_a_stopped_run_goes_on_in_every_engine(command, run, tmp_path, engine, device):
    """A line is logged at the very step at which the engine is warm and the clock starts anew."""
    every = f"workspace.every={{log: {engines.WARM_UP + 1}, validate: 8, rollout: 12, checkpoint: 3}}"
    options = (f"workspace.engine={engine}", f"device={device}", every, "denoiser.channels=[16]")  # less to compile
    straight = run(*options, "run_dir=straight")
    assert straight.returncode == 0, straight.stderr
    with subprocess.Popen(
        command(*options, "run_dir=stopped"), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    ) as process:
        next(line for line in process.stderr if line.startswith("step 4/"))
        process.send_signal(signal.SIGTERM)
        assert "SIGTERM: saved at step" in process.stderr.read()
    resumed = run(*options, "run_dir=stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming stopped at step" in resumed.stderr
    if device == "cpu":
        assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    losses = [
        [row["train/loss"] for row in metrics(tmp_path / d) if "train/loss" in row] for d in ("straight", "stopped")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_resumed_run_keeps_its_number_of_threads(run, tmp_path):
    """Sums over threads round differently: to the bit means with as many as before."""
    first = run("run_dir=threads", "n_threads=3", "workspace.num_steps=3")
    assert "on cpu with 3 threads, fp32" in first.stderr or "on cpu with 3 threads, bf16" in first.stderr
    assert "on cpu with 3 threads" in run("run_dir=threads", "n_threads=auto", "workspace.num_steps=4").stderr
    assert "on cpu with 2 threads" in run("run_dir=threads", "n_threads=2", "workspace.num_steps=5").stderr


def test_rollouts_that_are_repeated_count_once(uninterrupted, small_zarr, tmp_path):
    """A signal may end them after the checkpoint is listed among the best and before the run is saved."""
    config = torch.load(uninterrupted / "checkpoints/last.pt", weights_only=True)["config"] | {"run_dir": tmp_path}
    settings = {key: value for key, value in config["workspace"].items() if key != "_target_"}
    with TrainWorkspace(config, **settings) as run:
        run._build()
        run._open()
        for _ in range(2):
            run.assessment.keep_if_best("0.500", {"score": 0.5})
        assert [entry["score"] for entry in run.state.best] == [0.5]


NO_SIMULATOR = ["task.env=null", "run_dir=offline", "workspace.n_best=2"]


def test_without_a_simulator_the_smallest_validation_error_is_best(command, run, tmp_path):
    result = run(*NO_SIMULATOR)
    assert result.returncode == 0, result.stderr
    assert "val/action_mse" in result.stderr
    mse = {row["step"]: row["val/action_mse"] for row in metrics(tmp_path / "offline") if "val/action_mse" in row}
    assert sorted(mse) == [8, 16, 24]
    state = torch.load(tmp_path / "offline/checkpoints/last.pt", weights_only=True)
    smallest = sorted(mse, key=lambda step: mse[step])[:2]
    assert [entry["step"] for entry in state["best"]] == smallest
    assert [entry["score"] for entry in state["best"]] == [-mse[step] for step in smallest]
    assert {entry["metric"] for entry in state["best"]} == {"val/action_mse"}
    files = {file.name for file in (tmp_path / "offline/checkpoints").glob("best-*")}
    assert files == {f"best-{step:06d}-{mse[step]:.4g}.pt" for step in smallest}
    assert json.loads((tmp_path / "offline/run.json").read_text())["score"] == -min(mse.values())
    assert run(*NO_SIMULATOR, "workspace.num_steps=25").returncode == 0  # what it saved, it loads


def test_without_a_simulator_and_without_validation_only_the_last_checkpoint_is_kept(run, tmp_path):
    result = run(*NO_SIMULATOR, "dataset.val_ratio=0")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("only last.pt is kept") == 1
    assert [file.name for file in (tmp_path / "offline/checkpoints").iterdir()] == ["last.pt"]
    assert json.loads((tmp_path / "offline/run.json").read_text())["score"] is None


def test_a_resumed_run_keeps_the_precision_that_auto_chose(run, tmp_path):
    first = run("run_dir=bf16", "workspace.precision=bf16", "workspace.num_steps=2")
    assert first.returncode == 0, first.stderr
    for typed, precision, num_steps in (("auto", "bf16", 3), ("fp32", "fp32", 4)):
        result = run("run_dir=bf16", f"workspace.precision={typed}", f"workspace.num_steps={num_steps}")
        assert f" threads, {precision}" in result.stderr, result.stderr


def test_a_constructor_sets_nothing_outside_the_object(uninterrupted, small_zarr, tmp_path):
    config = torch.load(uninterrupted / "checkpoints/last.pt", weights_only=True)["config"]
    config |= {"run_dir": tmp_path / "run", "n_threads": 2}
    settings = {key: value for key, value in config["workspace"].items() if key != "_target_"}
    threads, rng, handlers = torch.get_num_threads(), torch.get_rng_state(), logging.getLogger().handlers[:]
    TrainWorkspace(config, **settings)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), rng)
    assert logging.getLogger().handlers == handlers
    assert not (tmp_path / "run").exists()

"""A training in several processes, as torchrun starts them, does what it does in one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import chain, islice
from pathlib import Path

import pytest
import torch

from dp import distributed
from dp.data.batches import BatchOrder
from tests.cli import RUN
from tests.workspaces.conftest import assert_same_run, metrics
from tests.workspaces.test_sweep import needs

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]

KILLS = int(os.environ.get("DP_TEST_KILLS", "1"))

LENGTH = ["workspace.every={log: 1, validate: 24, rollout: 24, checkpoint: 3}", "dataset.val_ratio=0.2", "n_threads=1"]


def start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*TORCHRUN, *command[1:]], cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True)


def in_two(command: list[str], cwd: Path) -> str:
    process = start(command, cwd)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return errors


def losses(run_dir: Path) -> dict[int, list[float]]:
    return {row["step"]: [row["train/loss"], row["train/grad_norm"]] for row in metrics(run_dir) if "train/loss" in row}


@pytest.fixture
def shared(command, tmp_path) -> Path:
    """A run of two processes."""
    in_two(command(*LENGTH, "run_dir=shared"), tmp_path)
    return tmp_path / "shared"


def test_two_processes_train_as_one_and_a_killed_one_resumes_to_the_bit(command, run, shared, tmp_path):
    done = run(*LENGTH, "run_dir=alone")
    assert done.returncode == 0, done.stderr
    alone = tmp_path / "alone"
    two, one = losses(shared), losses(alone)
    assert len(one) == 24
    assert two == {step: pytest.approx(numbers, abs=1e-5) for step, numbers in one.items()}
    # A run has one of each, and does not know how many wrote it.
    rows = [json.loads((folder / "rollouts/24.json").read_text()) for folder in (shared, alone)]
    assert [row["seed"] for row in rows[0]] == [row["seed"] for row in rows[1]]
    states = [torch.load(folder / "checkpoints/last.pt", weights_only=True) for folder in (shared, alone)]
    assert states[0].keys() == states[1].keys()
    assert torch.equal(states[0]["rng"], states[1]["rng"])
    for number in range(KILLS):
        killed_in_the_middle(command(*LENGTH, f"run_dir=killed-{number}"), tmp_path / f"killed-{number}")
        said = in_two(command(*LENGTH, f"run_dir=killed-{number}"), tmp_path)
        assert "resuming killed" in said
        assert_same_run(shared, tmp_path / f"killed-{number}")
    # One process goes on with what two began.
    for folder in ("shared", "alone"):
        assert run(*LENGTH, f"run_dir={folder}", "workspace.num_steps=30").returncode == 0
    assert losses(shared) == {step: pytest.approx(numbers, abs=1e-4) for step, numbers in losses(alone).items()}


def killed_in_the_middle(command: list[str], run_dir: Path) -> None:
    """Kills one of the two processes after one of the 24 steps, both at random. The other ends by itself."""
    process = start(command, run_dir.parent)
    wait_for_step(random.randrange(1, 24), run_dir, process)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(random.choice(ranks)), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "SIGKILL" in errors


def wait_for_step(step: int, run_dir: Path, process: subprocess.Popen[str]) -> None:
    rows = run_dir / "metrics.jsonl"
    while not rows.is_file() or f'"step": {step},' not in rows.read_text():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["workspace=inspect"], "only a training can be shared by 3 processes"),
        (["-m", "seed=0,1"], "torchrun starts one training, not a sweep"),
        (["workspace.batch_size=16"], "a batch of 16 cannot be shared evenly by 3 processes: expected a multiple of 3"),
    ],
)
def test_what_cannot_be_shared_is_refused(command, tmp_path, typed, said):
    launched = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3"}
    done = subprocess.run(
        command(*typed), cwd=tmp_path, env={**os.environ, **launched}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert said in done.stderr


@pytest.fixture
def ranks(monkeypatch):
    def be(rank: int) -> None:
        monkeypatch.setattr(distributed, "RANK", rank)
        monkeypatch.setattr(distributed, "WORLD", 3)

    return be


def test_ranks_draw_different_rows_of_the_same_numbers(ranks):
    whole = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    parts = []
    for rank in range(3):
        ranks(rank)
        parts.append(distributed.draw(torch.randn, (4, 5), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.cat(parts), whole)
    ranks(1)
    assert distributed.draw(torch.rand, (5, 2, 1), 1).shape == (5, 2, 1)
    assert [distributed.own_rows(12), distributed.share(range(7))] == [slice(4, 8), [1, 4]]


def test_every_window_is_seen_in_its_turn_while_the_number_of_processes_changes(ranks, monkeypatch):
    """One process for 5 batches, three for 10, one again for 5: some 5 epochs of 50 windows."""
    alone = [BatchOrder(50, 12, seed=3).batch(number).tolist() for number in range(20)]
    seen = [rows.tolist() for rows in islice(BatchOrder(50, 12, seed=3), 5)]
    shares = []
    for rank in range(3):
        ranks(rank)
        shares.append([rows.tolist() for rows in islice(BatchOrder(50, 12, seed=3, start=5), 10)])
    monkeypatch.undo()
    seen += [[*chain(*parts)] for parts in zip(*shares, strict=True)]
    seen += [rows.tolist() for rows in islice(BatchOrder(50, 12, seed=3, start=15), 5)]
    assert seen == alone


def test_ranks_drop_different_units_and_share_all_other_numbers(ranks):
    dropout, shares = torch.nn.Sequential(torch.nn.Dropout(0.5)), []
    denoiser = torch.nn.Sequential(dropout, torch.nn.Linear(1, 1))
    for rank in range(3):
        ranks(rank)
        work = distributed.apart(lambda n: (dropout(torch.ones(n)), distributed.draw(torch.randn, (n,))), denoiser)
        torch.manual_seed(0)
        first, saved, second = work(64), torch.get_rng_state(), work(64)
        shares.append([*first, *second, torch.rand(4)])
        torch.set_rng_state(saved)
        assert torch.equal(work(64)[0], second[0])  # a resumed run drops the same units
    masks = [mask for first, _, second, *_ in shares for mask in (first, second)]
    assert len({tuple(mask.tolist()) for mask in masks}) == 6  # of ranks, and of steps
    torch.manual_seed(0)
    whole = [torch.randn(3 * 64), torch.randn(3 * 64), torch.rand(4)]  # what a process without dropout draws
    for number, drawn in ((1, whole[0]), (3, whole[1])):
        assert torch.equal(torch.cat([share[number] for share in shares]), drawn)
    assert all(torch.equal(share[4], whole[2]) for share in shares)


ONE_WITHOUT_A_COMPILER = """
import os, runpy, sys, torch

def compile_(loss, **options):
    def broken(batch):
        raise RuntimeError("no compiler on this machine")
    return broken if os.environ["RANK"] == "1" else loss

torch.compile = compile_
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_an_engine_that_fails_on_one_rank_is_dropped_by_all(command, shared, tmp_path):
    (tmp_path / "run_one.py").write_text(ONE_WITHOUT_A_COMPILER)
    python, *typed = command(*LENGTH, "workspace.engine=compile", "run_dir=fallen")
    said = in_two([python, "run_one.py", *typed], tmp_path)
    assert "workspace.engine=compile failed, continuing with eager: RuntimeError: no compiler on this machine" in said
    assert_same_run(shared, tmp_path / "fallen")


@pytest.mark.skipif("DP_TEST_KILLS" not in os.environ, reason="a minute or more: set DP_TEST_KILLS=1")
@needs("hydra_plugins.hydra_submitit_launcher")
def test_a_job_of_two_tasks_that_is_queued_again_ends_as_if_nothing_had_been(command, shared, tmp_path):
    tasks = ["+launcher=submitit_local", "hydra.launcher.tasks_per_node=2", "hydra.sweep.dir=queued"]
    typed, run_dir = command("-m", *LENGTH, *tasks), tmp_path / "queued/run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(RUN.parent)}  # of this checkout
    process = subprocess.Popen(typed, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    wait_for_step(random.randrange(1, 24), run_dir, process)
    os.kill(json.loads((run_dir / "run.json").read_text())["pid"], signal.SIGUSR2)  # as before the end of its time
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    said = "".join(file.read_text() for file in (tmp_path / "queued/.submitit").rglob("*_0_log.*"))
    assert "Requeued job" in said
    assert f"resuming {run_dir}" in said
    assert_same_run(shared, run_dir)

import mmap
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch

from dp.data import WindowDataset
from dp.data.batches import (
    BatchOrder,
    Loader,
    ResidentLoader,
    StreamedLoader,
    _nbytes,
    check_shared_memory,
    fits,
    lost_worker,
)  # fmt: skip
from dp.types import Batch

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def windows() -> WindowDataset:
    generator = torch.Generator().manual_seed(0)
    obs = {
        "image": torch.randint(0, 256, (40, 4, 4, 3), generator=generator, dtype=torch.uint8),
        "agent_pos": torch.rand(40, 2, generator=generator),
    }
    table = torch.arange(37)[:, None] + torch.arange(4)
    return WindowDataset(obs, torch.rand(40, 2, generator=generator), table, n_obs_steps=2)


def order(seed: int = 7, start: int = 0) -> BatchOrder:
    return BatchOrder(37, batch_size=8, seed=seed, start=start)


def batches(loader: Loader, start: int, stop: int) -> list[Batch]:
    return [loader.load(inputs) for inputs in islice(loader, start, stop)]


def assert_identical(batches: list[Batch], expected: list[Batch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        torch.testing.assert_close(dict(batch), dict(other), rtol=0, atol=0)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_streamed_batches_are_the_resident_ones(windows: WindowDataset, n_workers: int) -> None:
    resident = batches(ResidentLoader(windows, order(start=3), CPU), 0, 10)
    assert resident[0]["obs"]["image"].shape == (8, 2, 3, 4, 4)
    assert resident[0]["obs"]["image"].dtype == torch.float32
    assert resident[0]["action"].shape == (8, 4, 2)
    assert_identical(batches(StreamedLoader(windows, order(start=3), CPU, n_workers), 0, 10), resident)


LOSES_A_WORKER = """
import os, signal, sys, time, torch
from dp.data import WindowDataset, batches
lose = {"killed": lambda *_: os.kill(os.getpid(), signal.SIGKILL), "hangs": lambda *_: time.sleep(60)}[sys.argv[1]]
batches._Gather.__getitem__ = lose
batches.WORKER_TIMEOUT_S = 1
table = torch.arange(37)[:, None] + torch.arange(4)
windows = WindowDataset({"agent_pos": torch.rand(40, 2)}, torch.rand(40, 2), table, n_obs_steps=2)
loader = batches.StreamedLoader(windows, batches.BatchOrder(37, 8, seed=7), torch.device("cpu"), n_workers=1)
try:
    with loader:
        next(iter(loader))
except ChildProcessError as error:
    print("died" in str(error) and batches.lost_worker(error.__cause__))
"""


@pytest.mark.parametrize("fails", ["killed", "hangs"])
def test_a_loader_process_that_is_lost_is_one_error(fails: str) -> None:
    """In a process of its own: torch's handler of SIGCHLD raises anywhere, also where a lock has just been taken."""
    command = [sys.executable, "-c", LOSES_A_WORKER, fails]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr
    assert done.returncode == 0


def test_an_error_in_a_loader_process_is_not_called_a_death(
    windows: WindowDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a user's own")

    monkeypatch.setattr("dp.data.batches._Gather.__getitem__", fail)
    loader = StreamedLoader(windows, order(), CPU, n_workers=1)
    with pytest.raises(RuntimeError, match="a user's own") as raised, loader:
        next(iter(loader))
    assert not lost_worker(raised.value)


@pytest.mark.parametrize("position", [1, 4, 5, 12])  # batch 4 spans two epochs
def test_starting_at_a_position_equals_skipping_to_it(windows: WindowDataset, position: int) -> None:
    skipped = batches(ResidentLoader(windows, order(), CPU), position, position + 6)
    assert_identical(batches(ResidentLoader(windows, order(start=position), CPU), 0, 6), skipped)


def test_batch_holds_the_windows_of_its_order(windows: WindowDataset) -> None:
    (batch,) = batches(ResidentLoader(windows, order(start=2), CPU), 0, 1)
    torch.testing.assert_close(batch["action"], windows.action[windows.table[order().batch(2)]])


@pytest.mark.parametrize("batch_size", [8, 37, 100])
def test_every_window_comes_exactly_once_an_epoch(batch_size: int) -> None:
    drawn = islice(BatchOrder(37, batch_size, seed=7), 3 * 37)
    epochs = torch.cat(list(drawn))[: 3 * 37].reshape(3, 37)
    assert (epochs.sort().values == torch.arange(37)).all()
    assert not torch.equal(epochs[0], epochs[1])  # each epoch has its own order
    assert not torch.equal(epochs[1], epochs[2])
    assert not torch.equal(epochs[0], torch.arange(37))


def test_seed_decides_the_order() -> None:
    assert torch.equal(order(seed=7).batch(3), order(seed=7).batch(3))
    assert not torch.equal(order(seed=7).batch(3), order(seed=8).batch(3))


def test_data_on_a_cpu_always_fit(windows: WindowDataset) -> None:
    assert fits(windows, CPU)


def test_too_little_shared_memory_is_said_before_a_worker_waits_for_it(tmp_path):
    check_shared_memory(1, tmp_path)
    check_shared_memory(10**18, tmp_path / "nowhere")  # macOS has no such place
    with pytest.raises(ValueError, match=r"workers need 1000000000000 MB of shared memory.*n_loader_workers=0"):
        check_shared_memory(10**18, tmp_path)


def test_small_tensors_take_whole_pages_of_shared_memory():
    batch = {"obs": {"state": torch.zeros(3)}, "action": torch.zeros(mmap.PAGESIZE + 1, dtype=torch.uint8)}
    assert _nbytes(batch) == 3 * mmap.PAGESIZE


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. "), True),
        (RuntimeError("DataLoader worker (pid(s) 758) exited unexpectedly"), True),
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (EOFError(), True),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0."), False),
        (ValueError("something else"), False),
    ],
)
def test_a_worker_that_died_is_told_from_an_error_in_it(error, lost):
    assert lost_worker(error) == lost

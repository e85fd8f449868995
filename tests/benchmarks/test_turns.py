"""Rivals really take turns, and those that cannot start are named instead of timed."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks.turns import race

TINY = {"encoder": "state", "channels": [16, 32], "kernel": 3, "norm": "layer", "batch": 8}


def contender(log: Path, name: str, seconds: float) -> list[str]:
    work = f"lambda: (open({str(log)!r}, 'a').write({name!r}), time.sleep({seconds}), print('noise'))"
    return [sys.executable, "-c", f"import time; from benchmarks.turns import serve; serve({work})"]


def test_contenders_take_turns_after_a_warm_up_of_each(tmp_path: Path) -> None:
    log = tmp_path / "log"
    timings, absent = race({"A": contender(log, "a", 0.05), "B": contender(log, "b", 0.01)}, rounds=3)
    assert log.read_text() == "ab" + "ababab"
    assert absent == []
    assert 0.05 <= timings["A"].low <= timings["A"].median <= timings["A"].high
    assert 0.01 <= timings["B"].median < timings["A"].median
    assert timings["A"].peak_mib > 1


def test_a_contender_that_cannot_start_is_named_with_its_last_words(tmp_path: Path) -> None:
    commands = {
        "works": contender(tmp_path / "log", "a", 0),
        "broken": [sys.executable, "-c", "import nothing_of_this_name"],
        "missing": ["/nowhere/python"],
    }
    timings, absent = race(commands, rounds=1)
    assert list(timings) == ["works"]
    assert len(absent) == 2
    assert "broken: ModuleNotFoundError: No module named 'nothing_of_this_name'" in absent[0]
    assert "/nowhere/python" in absent[1]


@pytest.mark.parametrize("task", ["train", "load", "denoise", "ema"])
def test_the_tasks_run_for_us_and_for_plain_pytorch(task: str, small_zarr: Path) -> None:
    settings: dict = {
        "train": {"calls": 1},
        "load": {"calls": 1},
        "denoise": {"scheduler": "ddim", "steps": 2, "batch": 3},
        "ema": {"calls": 1},
    }[task]
    settings["network"] = TINY
    mine = settings | ({"noise_draws": 2} if task == "train" else {})
    theirs = settings | ({"n_workers": 0} if task in ("train", "load") else {})
    commands = {
        "ours": [sys.executable, "-m", "benchmarks.ours", task, json.dumps(mine)],
        "plain": [sys.executable, "-m", "benchmarks.rivals.plain", task, json.dumps(theirs)],
    }
    timings, absent = race(commands, 1, {"DP_PUSHT_ZARR": str(small_zarr), "DP_CACHE": os.environ["DP_CACHE"]})
    assert absent == []
    assert set(timings) == {"ours", "plain"}

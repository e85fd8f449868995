"""`workspace=inspect` says what is there and what is wrong."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dp.tasks.pusht.sources import BUNDLED_PATH
from tests.cli import run_py
from tests.dp.data.stores import robot, write

ROOT = Path(__file__).parents[2]


def inspect(*overrides, cwd):
    return run_py("workspace=inspect", *overrides, cwd=cwd, timeout=120)


def test_sound_data_are_described(small_zarr, tmp_path):
    result = inspect(f"dataset.path={small_zarr}", "+experiment=pusht_state_small", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "6 episodes, 189 frames" in result.stdout
    assert "To=2 observed, H=16 predicted, Ta=8 executed" in result.stdout
    assert "not the official demonstrations" in result.stdout
    assert "6 of 6 demonstrations start from their number as a seed" in result.stdout
    assert "nothing is wrong" in result.stdout
    assert not any(tmp_path.iterdir())


def test_several_stores_are_described_one_by_one(small_zarr, tmp_path):
    own = shutil.copytree(BUNDLED_PATH, tmp_path / "own.zarr")
    initial_states = zarr.open(own, mode="r+")["meta/initial_state"]
    initial_states[:36] = initial_states[:36] + 1e-6  # no seed's any more
    arguments = (f"dataset.path=[{small_zarr},{own}]", "+experiment=pusht_state_small", "workspace.media=out")
    result = inspect(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "6 episodes, 189 frames" in result.stdout
    assert "160 episodes, 18378 frames" in result.stdout
    assert "state: (18567, 5)" in result.stdout
    assert "6 of 6 demonstrations start from their number as a seed" in result.stdout
    assert "160 of 160 demonstrations start from the stored initial state" in result.stdout
    assert "124 of these start as their seeds say" in result.stdout
    assert {file.name for file in (tmp_path / "out").iterdir()} > {"contact_sheet.png", "paths.png"}


def test_broken_data_are_named_with_what_mends_them(small_zarr, tmp_path):
    broken = tmp_path / "broken.zarr"
    shutil.copytree(small_zarr, broken)
    next((broken / "data/action").glob("1.*")).write_bytes(b"garbage")
    result = inspect(f"dataset.path={broken}", cwd=tmp_path)
    assert result.returncode == 1
    assert f"chunk {broken}/data/action/1.0 is corrupt" in result.stderr
    assert "dataset.path" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_store_of_another_task_is_described_and_the_line_to_paste_reads_it(tmp_path):
    path = write(tmp_path / "robot.zarr", robot(), zarr_format=3)
    result = inspect(f"dataset.path={path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "data/front: (100, 12, 16, 3) uint8" in result.stdout
    assert "task=pusht_image does not read them" in result.stdout
    assert "from meta/ends" in result.stdout
    assert "nothing is wrong" not in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if "To train on these data" in line]
    typed = shlex.split(line.partition("run.py ")[2])
    result = inspect(*typed, "+task.shape_meta.action.normalize={low: -1, high: 1}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train: 3 episodes" in result.stdout
    assert "WARNING" in result.stderr + result.stdout
    assert "nothing is wrong but what the WARNING above says" in result.stdout
    assert "official" not in result.stdout
    assert not any(file for file in tmp_path.iterdir() if file != path)
    result = inspect(*typed, "task.shape_meta.action.shape=[6]", "encoder.crop=13", cwd=tmp_path)
    assert result.returncode == 1
    assert "set task.shape_meta.action.shape=[7]" in result.stderr
    assert "encoder.crop=13 does not fit front, whose images have 12 x 16 pixels" in result.stderr


def test_a_format_that_is_typed_without_a_task_is_described_too(tmp_path):
    path = ROOT / "tests/data/lerobot/image"
    result = inspect("dataset=lerobot", f"dataset.path={path}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "task=own dataset=lerobot encoder.crop=0.9 'task.shape_meta=" in result.stdout


def test_the_official_data_are_recognised(official_zarr, tmp_path):
    result = inspect(f"dataset.path={official_zarr}", "+experiment=pusht_state_small", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the official demonstrations, bit for bit" in result.stdout
    assert "206 of 206 demonstrations start from their number as a seed" in result.stdout


@pytest.mark.parametrize(
    ("value", "length", "said"),
    [
        (np.nan, 25, "data/qpos is not finite at frame 40, as float32"),
        (1e300, 25, "data/qpos is not finite at frame 40, as float32"),
        (0, 1, "is long enough for a window of horizon=16"),
    ],
)
def test_what_training_would_refuse_in_a_store_of_another_task_is_wrong(value, length, said, tmp_path):
    arrays = robot(n_episodes=100 // length, length=length)
    arrays["meta/episode_ends"] = arrays.pop("meta/ends")
    arrays["data/qpos"][40, 2] = value
    path = write(tmp_path / "robot.zarr", arrays)
    result = inspect(f"dataset.path={path}", cwd=tmp_path)
    assert result.returncode == 1
    assert said in result.stderr

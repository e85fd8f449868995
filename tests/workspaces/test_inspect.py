"""`workspace=inspect` says what is there and what is wrong."""

import shutil
import subprocess
import sys

import zarr

from dp.tasks.pusht.sources import BUNDLED_PATH
from tests.workspaces.conftest import RUN


def inspect(*overrides, cwd):
    arguments = [sys.executable, str(RUN), "workspace=inspect", *overrides]
    return subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, timeout=120)


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
    assert "160 of 160 demonstrations start from the initial state that is stored with them" in result.stdout
    assert "124 of these are what their seeds give" in result.stdout
    assert {file.name for file in (tmp_path / "out").iterdir()} > {"contact_sheet.png", "paths.png"}


def test_broken_data_are_named_with_what_mends_them(small_zarr, tmp_path):
    broken = tmp_path / "broken.zarr"
    shutil.copytree(small_zarr, broken)
    next((broken / "data/action").glob("1.*")).unlink()
    result = inspect(f"dataset.path={broken}", cwd=tmp_path)
    assert result.returncode == 1
    assert f"chunk {broken}/data/action/1.0 is missing" in result.stderr
    assert "dataset.path" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_official_data_are_recognised(official_zarr, tmp_path):
    result = inspect(f"dataset.path={official_zarr}", "+experiment=pusht_state_small", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the official demonstrations, bit for bit" in result.stdout
    assert "206 of 206 demonstrations start from their number as a seed" in result.stdout

"""`workspace=convert` writes what trains to the same losses."""

import shlex
from pathlib import Path

import numpy as np
import pytest

from dp.data.formats import open_store
from tests.cli import run_py
from tests.dp.data.stores import robot, write
from tests.workspaces.conftest import metrics

TRAINING = [
    "encoder=cnn", "encoder.channels=[8,8,8,8]", "encoder.crop=1.0", "denoiser=unet1d_small",
    "denoiser.channels=[16,32]",
    "denoiser.step_embed_dim=16", "device=cpu", "n_threads=1",
    "logger.mode=disabled", "workspace.num_steps=2",
    "workspace.batch_size=4", "workspace.every={log: 1, validate: 2, rollout: 2, checkpoint: 2}",
    "workspace.precision=fp32", "lr_schedule.num_warmup_steps=1", "dataset.val_ratio=0.25",
]  # fmt: skip


def recording(path: Path) -> Path:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (100, 64, 64, 3), np.uint8)
    arrays = {"data/front": images, "data/qpos": robot()["data/qpos"], "data/action": robot()["data/action"]}
    return write(path, {**arrays, "meta/episode_ends": robot()["meta/ends"]})


def pasted(stdout: str) -> list[str]:
    """The arguments of the line that `workspace=inspect` prints."""
    (line,) = [line for line in stdout.splitlines() if "To train on these data" in line]
    return shlex.split(line.partition("run.py ")[2])


def test_a_conversion_trains_to_the_same_losses(tmp_path: Path) -> None:
    recording(tmp_path / "a.zarr")
    result = run_py("workspace=convert", "from=a.zarr", "to=b", "format=lerobot", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "and so it reads back" in result.stderr
    result = run_py("workspace=inspect", "dataset.path=b", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    typed = pasted(result.stdout)
    assert "dataset=lerobot" in typed
    ours = [one.replace("dataset=lerobot", "dataset=zarr").replace("path=b", "path=a.zarr") for one in typed]
    for name, command in (("b", typed), ("a", ours)):
        result = run_py(*command, *TRAINING, f"run_dir=run-{name}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    losses = [metrics(tmp_path / f"run-{name}") for name in ("a", "b")]
    assert "val/loss" in losses[0][-1]
    assert losses[0] == losses[1]


def test_a_tasks_own_demonstrations_are_converted_by_name(tmp_path: Path) -> None:
    result = run_py("workspace=convert", "from=bundled", "to=b.hdf5", "format=hdf5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "left out, as they are not numbers of every frame: meta/" in result.stderr
    assert "robomimic dataset.path=b.hdf5" in result.stderr
    assert open_store(tmp_path / "b.hdf5").open("obs/state").shape == (18378, 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "from is missing: type workspace=convert from=PATH to=PATH format=lerobot"),
        (["from=a.zarr", "to=b", "format=parquet"], "format=parquet, expected zarr, lerobot or hdf5"),
        (["from=nothing", "to=b", "format=zarr"], "there is no data set there"),
        (["from=a.zarr", "to=b", "format=zarr", "fps=0"], "fps=0"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], said: str, tmp_path: Path) -> None:
    recording(tmp_path / "a.zarr")
    result = run_py("workspace=convert", *arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert said in result.stderr, result.stderr
    assert "Traceback" not in result.stderr

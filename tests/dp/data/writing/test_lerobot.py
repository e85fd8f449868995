"""LeRobot itself reads what is written in its format."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dp.data.conversion import convert, gather
from dp.data.formats import open_store
from dp.data.formats.lerobot import LeRobotStore
from dp.data.writing import statistics
from tests.data.lerobot.make import SIZES
from tests.dp.data.stores import robot, write

MADE = Path(__file__).parents[3] / "data/lerobot"

LEROBOT = os.environ.get("DP_LEROBOT_PYTHON")
"""A Python with lerobot 0.4.4: .venv-lerobot/bin/python, which `make bench` installs."""

READ = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

data = LeRobotDataset("dp/test", root=sys.argv[1])
frames = [data[n] for n in range(len(data))]
arrays = {name: np.stack([np.asarray(frame[name]) for frame in frames]) for name in data.features}
arrays["mean"] = np.asarray(data.meta.stats["observation.front"]["mean"])
print([frame["task"] for frame in frames][::50], data.fps, data.num_episodes)
np.savez(sys.argv[2], **arrays)
"""


@pytest.mark.skipif(LEROBOT is None, reason="set DP_LEROBOT_PYTHON to a Python with lerobot 0.4.4")
def test_lerobot_reads_equal_values(tmp_path: Path) -> None:
    recorded = {
        **robot(),
        "data/task_index": np.repeat([0, 1], 50),
        "data/pose": np.random.default_rng(1).random((100, 2, 3)),
    }
    convert(open_store(write(tmp_path / "a.zarr", recorded)), tmp_path / "lerobot", "lerobot", fps=20.0)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ""}
    command = [str(LEROBOT), "-c", READ, str(tmp_path / "lerobot"), str(tmp_path / "read.npz")]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "['task 0', 'task 1'] 20 4" in result.stdout
    read = np.load(tmp_path / "read.npz")
    for name, key in (("qpos", "qpos"), ("gripper", "gripper"), ("pose", "pose")):
        values = recorded[f"data/{key}"]
        expected = values.astype(np.float32) if values.dtype == np.float64 else values  # LeRobot's tensors are float32
        np.testing.assert_array_equal(read[f"observation.{name}"], expected)
    np.testing.assert_array_equal(read["action"], recorded["data/action"].astype(np.float32))
    front = np.rint(read["observation.front"] * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(front, recorded["data/front"])
    np.testing.assert_allclose(read["mean"][:, 0, 0], recorded["data/front"].mean((0, 1, 2)) / 255, atol=1e-6)
    np.testing.assert_allclose(read["timestamp"], np.tile(np.arange(25) / 20, 4), atol=1e-6)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_lerobots_own_data_are_written_as_they_were(kind: str, tmp_path: Path) -> None:
    convert(LeRobotStore(MADE / kind), tmp_path / "copy", "lerobot")
    copy, own = LeRobotStore(tmp_path / "copy"), LeRobotStore(MADE / kind)
    assert copy.names == own.names
    assert list(copy.tasks) == list(own.tasks)
    for name in own.names:
        np.testing.assert_array_equal(copy.read(name), own.read(name), err_msg=name)


def test_statistics_are_those_that_lerobot_computes(tmp_path: Path) -> None:
    convert(LeRobotStore(MADE / "image"), tmp_path / "copy", "lerobot")
    ours, theirs = (json.loads((root / "meta/stats.json").read_text()) for root in (tmp_path / "copy", MADE / "image"))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].keys() == expected.keys()
        keys = [
            "min",
            "max",
            "mean",
            *(["std", "count"] if name not in SIZES else []),
        ]  # it estimates those of pictures
        for key in keys:
            got, want = np.asarray(ours[name][key], float), np.asarray(expected[key], float)
            assert got.shape == want.shape, (name, key)
            np.testing.assert_allclose(got, want, atol=2e-3, err_msg=f"{name} {key}")


def test_quantiles_of_images_are_those_of_all_their_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 200, (5, 8, 9, 3), np.uint8)
    found = statistics.of_images(statistics.histogram(images), len(images))
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(found["mean"].ravel(), pixels.mean(0))
    np.testing.assert_allclose(found["std"].ravel(), pixels.std(0))
    for name, q in statistics.QUANTILES.items():
        expected = np.quantile(pixels, q, axis=0, method="inverted_cdf")
        np.testing.assert_allclose(found[name].ravel(), expected)


def test_a_task_index_of_another_kind_is_refused(tmp_path: Path) -> None:
    source = open_store(write(tmp_path / "a.zarr", {**robot(), "data/task_index": np.full(100, -1)}))
    with pytest.raises(ValueError, match="task_index is int64 from -1 to -1, expected int64 from 0"):
        convert(source, tmp_path / "there", "lerobot")
    assert "task_index" in gather(source).arrays

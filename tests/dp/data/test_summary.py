"""Any store is described, and the guessed `shape_meta` fits it."""

from pathlib import Path

import numpy as np
import zarr

from dp.data import open_zarr
from dp.data.formats.zarr import ZarrStore
from dp.data.summary import describe, guess
from dp.modalities import parse_shape_meta
from tests.dp.data.stores import robot, write


def test_a_store_is_described(tmp_path: Path) -> None:
    arrays = {**robot(), "data/qpos": np.linspace(-1, 2, 700).reshape(100, 7)}
    arrays["data/gripper"] = np.where(np.arange(100) < 14, 0, arrays["data/gripper"])
    text = "\n".join(describe(ZarrStore(write(tmp_path / "a.zarr", arrays))))
    assert "data/front: (100, 12, 16, 3) uint8" in text
    assert "data/qpos: (100, 7) float64, -1 to 2" in text
    assert "; 2 chunks are not stored and read as 0" in text
    assert "4 episodes, 100 frames; lengths 25 to 25, median 25 steps" in text


def test_a_store_without_ends_is_described_too(tmp_path: Path) -> None:
    text = "\n".join(describe(ZarrStore(write(tmp_path / "a.zarr", {"action": np.ones((30, 2))}))))
    assert "episodes: " in text
    assert "dataset.episode_ends=KEY" in text


def test_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    arrays = robot()
    arrays["data/qpos"][40, 2] = np.nan
    path = write(tmp_path / "a.zarr", arrays)
    zarr.open_group(str(path), mode="a").create_array("meta/fps", shape=(), dtype="i8")
    text = "\n".join(describe(ZarrStore(path)))
    assert "meta/fps: () int64" in text
    assert "nan to" not in text
    assert ", NOT FINITE at frame 40" in text


def test_the_guessed_shape_meta_fits_the_store(tmp_path: Path) -> None:
    arrays = {**robot(), "data/sub/qpos": np.ones((100, 2), np.float32)}
    arrays["data/actions"] = arrays.pop("data/action")
    arrays["data/top cam.1"] = arrays.pop("data/wrist")
    path = write(tmp_path / "a.zarr", arrays)
    shape_meta = guess(ZarrStore(path))
    assert shape_meta == {
        "obs": {
            "front": {"type": "rgb", "shape": [3, 12, 16]},
            "data_qpos": {"type": "low_dim", "shape": [7], "key": "data/qpos"},
            "data_sub_qpos": {"type": "low_dim", "shape": [2], "key": "data/sub/qpos"},
            "top_cam_1": {"type": "rgb", "shape": [3, 10, 8], "key": "data/top cam.1"},
        },
        "action": {"shape": [7], "key": "data/actions"},
    }
    data = open_zarr(*parse_shape_meta(shape_meta), path=str(path))
    assert data.n_episodes == 4

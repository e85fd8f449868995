"""Data train alike from whichever format they come."""

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dp.data import open_lerobot, open_robomimic, open_zarr
from dp.data.conversion import convert
from dp.data.formats import choice_of, open_store
from dp.data.reading import Mismatch
from dp.data.summary import describe, guess
from dp.modalities import parse_shape_meta
from tests.dp.data.formats import test_hdf5
from tests.dp.data.stores import robot, write

META = {
    "obs": {
        "front": {"type": "rgb", "shape": [3, 12, 16]},
        "wrist": {"type": "rgb", "shape": [3, 10, 8]},
        "joints": {"type": "low_dim", "shape": [7], "key": "qpos"},
    },
    "action": {"shape": [7]},
}
OPEN: dict[str, Any] = {"zarr": open_zarr, "lerobot": open_lerobot, "robomimic": open_robomimic}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same demonstrations in three formats, by the choice of `dataset=`."""
    folder = tmp_path_factory.mktemp("formats")
    arrays = {name: values for name, values in robot().items() if name != "meta/ends"}
    arrays["meta/episode_ends"] = robot()["meta/ends"]
    paths = {"zarr": write(folder / "a.zarr", arrays)}
    for choice, file_format in (("lerobot", "lerobot"), ("robomimic", "hdf5")):
        paths[choice] = folder / choice
        convert(open_store(paths["zarr"]), paths[choice], file_format)
    return paths


def test_every_format_gives_the_same_windows(stores: dict[str, Path]) -> None:
    obs, action = parse_shape_meta(META)
    opened = {choice: OPEN[choice](obs, action, str(path), val_ratio=0.25) for choice, path in stores.items()}
    expected = opened["zarr"]
    for choice, data in opened.items():
        assert choice_of(stores[choice]) == choice
        assert data.sha256 == expected.sha256
        assert data.split.val.tolist() == expected.split.val.tolist()
        ours, theirs = (d.windows(np.arange(4), 16, 2, 8) for d in (data, expected))
        for name in META["obs"]:
            np.testing.assert_array_equal(ours.obs[name], theirs.obs[name])
        np.testing.assert_array_equal(ours.action, theirs.action)


@pytest.mark.parametrize("choice", ["lerobot", "robomimic"])
def test_names_of_the_task_are_mapped_to_the_files(stores: dict[str, Path], choice: str) -> None:
    meta = {"obs": {"agent_pos": {"type": "low_dim", "shape": [7]}}, "action": {"shape": [7]}}
    data = OPEN[choice](*parse_shape_meta(meta), str(stores[choice]), names={"agent_pos": "qpos"})
    np.testing.assert_array_equal(data.episodes.arrays["agent_pos"], robot()["data/qpos"].astype(np.float32))
    with pytest.raises(ValueError, match=r"names.nothing: the task has no such observation, expected .* agent_pos"):
        OPEN[choice](*parse_shape_meta(meta), str(stores[choice]), names={"nothing": "qpos"})


@pytest.mark.parametrize("choice", ["lerobot", "robomimic"])
def test_the_guessed_shape_meta_fits(stores: dict[str, Path], choice: str) -> None:
    store = open_store(stores[choice])
    shape_meta = guess(store)
    assert shape_meta["obs"]["front"] == {"type": "rgb", "shape": [3, 12, 16]}
    assert "4 episodes, 100 frames; lengths 25 to 25" in "\n".join(describe(store))
    assert OPEN[choice](*parse_shape_meta(shape_meta), path=str(stores[choice])).n_episodes == 4


def test_another_format_is_named(stores: dict[str, Path]) -> None:
    obs, action = parse_shape_meta(META)
    with pytest.raises(Mismatch, match="is a LeRobot data set, not a zarr store: set dataset=lerobot"):
        open_zarr(obs, action, str(stores["lerobot"]))
    with pytest.raises(Mismatch, match="is a zarr store, not an HDF5 file of robomimic's: set dataset=zarr"):
        open_robomimic(obs, action, str(stores["zarr"]))


@pytest.mark.parametrize(("choice", "package"), [("lerobot", "pyarrow"), ("robomimic", "h5py")])
def test_a_missing_package_is_named(
    stores: dict[str, Path], choice: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [
        name for name in sys.modules if name.startswith("dp.data.formats.") or name.partition(".")[0] == package
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it was not installed
    with pytest.raises(ValueError, match=rf"needs {package}: pip install -e '\.\[{choice}\]'"):
        OPEN[choice](*parse_shape_meta(META), str(stores[choice]))


EEF = {"obs": {"eef": {"type": "low_dim", "shape": [3], "key": "robot0_eef_pos"}}, "action": {"shape": [7]}}


def test_robomimics_lists_choose_and_split(tmp_path: Path) -> None:
    path = str(test_hdf5.write(tmp_path / "a.hdf5"))
    meta = parse_shape_meta(EEF)
    data = open_robomimic(*meta, path, filter_key="train", val_filter_key="valid")
    assert data.n_episodes == 12
    assert data.split.val.tolist() == [3]
    assert data.split.train.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    few = open_robomimic(*meta, path, filter_key="20_percent", val_filter_key="valid", max_train_episodes=1)
    assert (few.n_episodes, few.split.val.tolist(), len(few.split.train)) == (3, [2], 1)
    assert open_robomimic(*meta, path, filter_key="20_percent").n_episodes == 2
    with pytest.raises(ValueError, match="val_filter_key=train leaves no demonstration"):
        open_robomimic(*meta, path, filter_key="20_percent", val_filter_key="train")
    with pytest.raises(ValueError, match="filter_key=test, but"):
        open_robomimic(*meta, path, val_filter_key="test")


def test_rotations_of_robomimics_actions_are_mapped(tmp_path: Path) -> None:
    path = test_hdf5.write(tmp_path / "a.hdf5")
    obs, action = parse_shape_meta({**EEF, "action": {"shape": [10]}})
    data = open_robomimic(obs, action, str(path), rotation="6d")
    with h5py.File(path) as file:
        first = file["data/demo_0/actions"][:]
    read = data.episodes.episode(0)["action"]
    np.testing.assert_allclose(read[:, [0, 1, 2, 9]], first[:, [0, 1, 2, 6]], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(read[:, 3:6], axis=1), 1, atol=1e-6)

"""What `shape_meta` declares is found in the store, or one line says what to type."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from dp.data.formats.zarr import ZarrStore
from dp.data.reading import Mismatch, read
from dp.data.recording import SETTINGS
from dp.files import write_json
from dp.modalities import parse_shape_meta
from tests.dp.data.stores import SHAPE_META, robot, write


def load(*paths: Path, ends: str | None = None, **entries: Any) -> Any:
    """With entries of SHAPE_META replaced, or left out where they are None."""
    meta = {**SHAPE_META["obs"], **{name: entry for name, entry in entries.items() if name != "action"}}
    obs = {name: entry for name, entry in meta.items() if entry is not None}
    specs, action = parse_shape_meta({"obs": obs, "action": entries.get("action", SHAPE_META["action"])})
    return read([ZarrStore(path) for path in paths], {**specs, "action": action}, ends)


def refused(*paths: Path, ends: str | None = None, **entries: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load(*paths, ends=ends, **entries)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_cameras_of_any_layout_and_numbers_of_any_type_are_read(tmp_path: Path) -> None:
    arrays = robot()
    episodes = load(write(tmp_path / "a.zarr", arrays, zarr_format=3))
    np.testing.assert_array_equal(episodes.arrays["front"], arrays["data/front"])
    expected = np.rint(arrays["data/wrist"] * 255).astype(np.uint8)  # floats from 0 to 1, channels first
    np.testing.assert_array_equal(episodes.arrays["wrist"], expected.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(episodes.arrays["joints"], arrays["data/qpos"].astype(np.float32))
    np.testing.assert_array_equal(episodes.arrays["gripper"], arrays["data/gripper"][:, None].astype(np.float32))
    np.testing.assert_array_equal(episodes.arrays["action"], arrays["data/action"].astype(np.float32))
    assert {array.dtype for name, array in episodes.arrays.items() if name not in ("front", "wrist")} == {
        np.dtype(np.float32)
    }
    assert episodes.episode_ends.tolist() == [25, 50, 75, 100]


def test_several_stores_are_joined_and_their_images_stay_in_a_file(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.zarr", robot(seed)) for seed in (1, 2)]
    alone = [load(path) for path in paths]
    joined = load(*paths)
    assert joined.n_episodes == 8
    for number in range(8):
        expected = alone[number // 4].episode(number % 4)
        for name, array in joined.episode(number).items():
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    assert isinstance(joined.arrays["front"], np.memmap)
    assert not joined.arrays["front"].flags.writeable


def test_a_collected_store_among_ones_of_other_names_is_read_by_the_names_of_observations(tmp_path: Path) -> None:
    arrays, own = robot(), write(tmp_path / "own.zarr", robot())
    names = {"data/qpos": "data/joints", "meta/ends": "meta/episode_ends"}
    collected = write(tmp_path / "collected.zarr", {names.get(name, name): array for name, array in arrays.items()})
    assert "has no array 'qpos'" in refused(own, collected, ends="meta/ends")
    write_json(collected / ".zattrs", {SETTINGS: {}})
    joined = load(own, collected, ends="meta/ends")
    assert joined.n_episodes == 8
    np.testing.assert_array_equal(joined.arrays["joints"], np.tile(arrays["data/qpos"].astype(np.float32), (2, 1)))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"front": {"type": "rgb", "shape": [3, 96, 96]}},
            "data/front holds uint8 (12, 16, 3) per frame.*declares rgb [3, 96, 96].*set "
            "task.shape_meta.obs.front.shape=[3, 12, 16]",
        ),
        ({"wrist": {"type": "rgb", "shape": [3, 8, 10]}}, "set task.shape_meta.obs.wrist.shape=[3, 10, 8]"),
        (
            {"joints": {"shape": [6], "key": "qpos"}},
            "data/qpos holds float64 (7,) per frame, but task.shape_meta.obs.joints declares low_dim [6]: set "
            "task.shape_meta.obs.joints.shape=[7]",
        ),
        ({"action": {"shape": [2]}}, "set task.shape_meta.action.shape=[7]"),
        (
            {"side": {"type": "rgb", "shape": [3, 12, 16]}},
            "has no array 'side', it has data/action (100, 7) float64, .*set task.shape_meta.obs.side.key to one of",
        ),
        (
            {"joints": {"type": "rgb", "shape": [3, 12, 16], "key": "qpos"}},
            "expected three channels, first or last",
        ),
    ],
)
def test_a_declaration_that_does_not_fit_is_answered_with_what_does(
    tmp_path: Path, entries: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.zarr", robot())
    monkeypatch.setattr(ZarrStore, "blocks", None)  # nothing large is read before
    said = refused(path, **entries)
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), said), said
    with pytest.raises(Mismatch):
        load(path, **entries)


def test_images_that_fit_either_way_are_refused(tmp_path: Path) -> None:
    arrays = {**robot(), "data/front": np.zeros((100, 3, 3, 3), np.uint8)}
    said = refused(write(tmp_path / "a.zarr", arrays), front={"type": "rgb", "shape": [3, 3, 3]})
    assert "may have their channels first or last" in said


def test_ends_are_found_under_any_name_and_told_from_counters(tmp_path: Path) -> None:
    arrays = {
        **robot(),
        "data/frame": np.arange(1, 101),
        "meta/seed": np.arange(4) + 2**40,
        "meta/lengths": np.full(4, 25),
    }
    assert load(write(tmp_path / "a.zarr", arrays)).n_episodes == 4


def test_ends_that_are_ambiguous_or_missing_are_named(tmp_path: Path) -> None:
    arrays = {**robot(), "meta/chapters": np.array([50, 100])}
    path = write(tmp_path / "two.zarr", arrays)
    said = refused(path)
    assert "['meta/chapters', 'meta/ends']" in said
    assert "dataset.episode_ends=KEY" in said
    assert load(path, ends="chapters").n_episodes == 2
    assert load(path, ends="meta/ends").n_episodes == 4
    assert "dataset.episode_ends=nothing, but" in refused(path, ends="nothing")
    del arrays["meta/chapters"], arrays["meta/ends"]
    said = refused(write(tmp_path / "none.zarr", arrays))
    assert "has no arrays" in said
    assert "ends at 100, the number of frames" in said


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([25, 25, 25, 25], "must increase, but does not at episode 1. These are the lengths of the episodes"),
        (
            [10, 20, 30, 40],
            "has 100 frames, but the last episode of meta/episode_ends ends at 40. These are the lengths",
        ),
        ([0, 25, 50, 75], "must increase, but does not at episode 0. These are the first frames"),
        ([0, 10, 30, 60], "must increase, but does not at episode 0. These are the first frames"),
        (100, "meta/episode_ends has shape () and type int64, expected integers of shape (E,), E > 0"),
        ([24, 49, 74, 99], "ends at 99. These are the last frames of the episodes: store them plus one"),
        ([25, 50, 90], "has 100 frames, but the last episode of meta/episode_ends ends at 90"),
        ([-5, 50, 100], "must increase, but does not at episode 0"),
        ([25.0, 50.0, 100.0], "type float64, expected integers"),
    ],
)
def test_numbers_that_are_no_ends_are_recognised(ends: list | int, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", robot())
    zarr.open_group(str(path), mode="a").create_array("meta/episode_ends", data=np.array(ends))
    assert said in refused(path)


def test_ends_of_another_type_and_lost_ends_are_named(tmp_path: Path) -> None:
    arrays = {**robot(), "meta/episode_ends": np.arange(25.0, 101, 25)}
    assert "meta/episode_ends has shape (4,) and type float64, expected integers" in refused(
        write(tmp_path / "a.zarr", arrays)
    )
    path = write(tmp_path / "b.zarr", {**arrays, "meta/episode_ends": np.arange(25, 101, 25)})
    (path / "meta/episode_ends/0").unlink()
    assert f"chunk {path}/meta/episode_ends/0 is missing" in refused(path)


def test_unsound_values_are_named_without_telling_anybody_to_delete(tmp_path: Path) -> None:
    arrays = robot()
    arrays["data/action"][77, 3] = np.nan
    said = refused(write(tmp_path / "a.zarr", arrays))
    assert f"{tmp_path}/a.zarr/data/action is not finite at frame 77" in said
    assert "elete" not in said


def test_arrays_of_different_lengths_are_named(tmp_path: Path) -> None:
    arrays = robot()
    arrays["data/qpos"] = arrays["data/qpos"][:90]
    assert "have different numbers of frames: {'data/front': 100" in refused(write(tmp_path / "a.zarr", arrays))

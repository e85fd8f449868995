import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from dp.data.reading import Mismatch
from dp.tasks.pusht.sources import BUNDLED_PATH
from dp.tasks.pusht.store import IMAGE, ReplayBuffer, read_facts
from tests.dp.data.stores import write

NAMES = ["img", "state", "action"]


@pytest.fixture
def store(small_zarr: Path, tmp_path: Path) -> Path:
    """A copy of the small store, to be damaged."""
    return Path(shutil.copytree(small_zarr, tmp_path / "store.zarr"))


def rewrite(store: Path, name: str, index: object, value: object) -> None:
    zarr.open(str(store / name), mode="r+")[index] = value


def cut(store: Path, name: str, length: int) -> None:
    array = zarr.open(str(store / name), mode="r+")
    array.resize((length, *array.shape[1:]))


def test_reads_the_official_data(official_zarr: Path, tmp_path: Path) -> None:
    buffer = ReplayBuffer.load(official_zarr, NAMES, tmp_path)
    shutil.rmtree(tmp_path)  # 0.7 GB
    assert (buffer.n_episodes, len(buffer)) == (206, 25_650)
    lengths = buffer.episode_ends - buffer.episode_starts
    assert (lengths.min(), np.median(lengths), lengths.max()) == (49, 122, 246)
    images, state, action = (buffer.arrays[name] for name in NAMES)
    assert (images.shape, images.dtype) == ((25_650, 96, 96, 3), np.uint8)
    assert (state.shape, state.dtype) == ((25_650, 5), np.float32)
    assert (action.shape, action.dtype) == ((25_650, 2), np.float32)
    assert action.min() >= 0
    assert action.max() <= 512
    frame = 12_345
    np.testing.assert_array_equal(images[frame], zarr.open(str(official_zarr / "data/img"), mode="r")[frame])


def test_reads_every_chunk_of_the_small_store(small_zarr: Path, tmp_path: Path) -> None:
    buffer = ReplayBuffer.load(small_zarr, NAMES, tmp_path)
    assert buffer.episode_ends.dtype == np.int64
    assert buffer.episode_ends.tolist() == [24, 51, 81, 114, 150, 189]
    assert buffer.episode_starts.tolist() == [0, 24, 51, 81, 114, 150]
    for name in NAMES:
        np.testing.assert_array_equal(buffer.arrays[name], zarr.open(str(small_zarr / "data" / name), mode="r")[:])


@pytest.mark.parametrize("chunk", ["data/img/2.0.0.0", "data/state/1.0", "meta/episode_ends/0"])
def test_corrupt_chunk_is_named_and_own_data_are_not_to_be_deleted(store: Path, tmp_path: Path, chunk: str) -> None:
    (store / chunk).write_bytes(b"garbage" * 10)
    with pytest.raises(ValueError, match=f"chunk {store / chunk} is corrupt") as caught:
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")
    assert "Point dataset.path at an intact copy" in str(caught.value)
    assert "elete" not in str(caught.value)


def test_the_downloaded_store_has_every_chunk_and_comes_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp.tasks.pusht.store.DEFAULT_PATH", store)
    (store / "data/action/1.0").unlink()
    with pytest.raises(ValueError, match=f"chunk {store}/data/action/1.0 is missing. Delete {store} and run again"):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")


def test_a_chunk_of_zeros_may_be_left_out_of_own_stores(store: Path) -> None:
    rewrite(store, "data/action", slice(0, 64), 0)
    (store / "data/action/0.0").unlink(missing_ok=True)
    assert (ReplayBuffer.load(store, ["action"]).arrays["action"][:64] == 0).all()


def test_a_chunk_that_collecting_wrote_and_is_gone_is_missed(tmp_path: Path) -> None:
    collected = Path(shutil.copytree(BUNDLED_PATH, tmp_path / "own.zarr"))
    (collected / "data/state/2.0").unlink()
    with pytest.raises(ValueError, match=r"chunk .*/data/state/2.0 is missing. .*collect it again"):
        ReplayBuffer.load(collected, ["state"])


@pytest.mark.parametrize("name", ["state", "action"])
def test_missing_array_is_named_with_those_there_are(store: Path, tmp_path: Path, name: str) -> None:
    shutil.rmtree(store / "data" / name)
    with pytest.raises(Mismatch, match=f"{store}: has no array '{name}'.*The store has data/.*workspace=inspect"):
        ReplayBuffer.load(store, NAMES, tmp_path)


def test_missing_store_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set at .*nowhere: give dataset\.path=PATH or set DP_PUSHT_ZARR"):
        ReplayBuffer.load(tmp_path / "nowhere", NAMES)


@pytest.mark.parametrize(
    ("array", "index", "value", "message"),
    [
        ("meta/episode_ends", 2, 51, "meta/episode_ends must increase, but does not at episode 2"),
        ("meta/episode_ends", 0, 0, "meta/episode_ends must increase, but does not at episode 0"),
        ("data/state", (7, 4), np.nan, "data/state is not finite at frame 7"),
        ("data/action", (188, 0), -np.inf, "data/action is not finite at frame 188"),
        ("data/img", (40, 5, 5, 1), 256, "data/img holds values from .* to 256 in frames 0-128"),
        ("data/img", (188, 0, 0, 0), np.nan, "data/img holds values from nan to nan"),
    ],
)
def test_unsound_values_are_refused(
    store: Path, tmp_path: Path, array: str, index: object, value: float, message: str
) -> None:
    rewrite(store, array, index, value)
    with pytest.raises(ValueError, match=f"{store}/{message}") as caught:
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")
    assert "elete" not in str(caught.value)


def test_columns_of_another_width_are_refused_before_anything_is_read(store: Path, tmp_path: Path) -> None:
    shutil.rmtree(store / "data/action")
    write(store, {"data/action": np.ones((189, 3), np.float32)}, mode="a")
    with pytest.raises(
        Mismatch, match=rf"{store}: data/action holds float32 \(3,\) per frame, but PushT's action is \(2,\)"
    ):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_images_of_another_size_are_refused_before_they_are_read(store: Path, tmp_path: Path) -> None:
    shutil.rmtree(store / "data/img")
    write(store, {"data/img": np.ones((189, 24, 32, 3), np.uint8)}, mode="a")
    with pytest.raises(
        Mismatch, match=r"data/img holds uint8 \(24, 32, 3\) per frame, but task.shape_meta.obs.image dec"
    ):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_stored_pictures_are_not_replaced_by_rendered_ones(store: Path, tmp_path: Path) -> None:
    images = ReplayBuffer.load(store, ["img"], tmp_path / "cache").arrays["img"]
    (store / "data/img").rename(store / "data/camera_1")
    with pytest.raises(
        Mismatch, match=r"no data/img, but data/camera_1: set task.shape_meta.obs.image.key=data/camera_1"
    ):
        ReplayBuffer.load(store, ["img"], tmp_path / "cache")
    spec = replace(IMAGE, key="data/camera_1")
    named = ReplayBuffer.load(store, ["img"], tmp_path / "cache", spec).arrays["img"]
    np.testing.assert_array_equal(named, images)


def test_pictures_of_others_are_drawn_only_on_request(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(store / "data/img")
    with pytest.raises(Mismatch, match=f"{store} has no pictures.*dataset.render=true"):
        ReplayBuffer.load(store, ["img"], tmp_path / "cache")
    images = ReplayBuffer.load(store, ["img"], tmp_path / "cache", render=True).arrays["img"]
    assert images.shape == (189, 96, 96, 3)
    assert "drawn from its states" in caplog.text


def test_the_official_numbers_of_frames_stand_for_a_store_without_gaps(tmp_path: Path) -> None:
    arrays = {"data/state": np.ones((25_650, 5), "f4"), "data/action": np.ones((25_650, 2), "f4")}
    ends = np.append(np.arange(1, 206), 25_650)
    path = write(
        tmp_path / "a.zarr",
        {**arrays, "meta/episode_ends": ends},
        chunks={"data/action": (6000, 2), "data/state": (6000, 5)},
    )
    (path / "data/action/2.0").unlink()
    with pytest.raises(ValueError, match=r"chunk .*data/action/2.0 is missing. Point dataset.path at an intact copy"):
        ReplayBuffer.load(path, ["action"])


def test_actions_that_are_no_numbers_are_refused(store: Path) -> None:
    shutil.rmtree(store / "data/action")
    write(store, {"data/action": np.ones((189, 2), np.complex64)}, mode="a")
    with pytest.raises(Mismatch, match="data/action holds complex64"):
        ReplayBuffer.load(store, ["action"])


def test_episode_numbers_are_no_seeds_unless_episodes_start_there(store: Path) -> None:
    assert ReplayBuffer.load(store, ["state"]).from_seed.all()
    rewrite(store, "data/state", (51, 0), 17)
    assert ReplayBuffer.load(store, ["state"]).from_seed.tolist() == [True, True, False, True, True, True]


def test_own_arrays_with_the_names_of_facts_mean_nothing(store: Path) -> None:
    write(store, {"meta/seed": np.arange(6) + 2**40, "meta/success": np.ones(6, bool)}, mode="a")
    buffer = ReplayBuffer.load(store, ["state"])
    assert buffer.seeds.tolist() == [0, 1, 2, 3, 4, 5]
    assert read_facts(store) == {}


def test_arrays_of_different_lengths_are_refused(store: Path, tmp_path: Path) -> None:
    cut(store, "data/state", 188)
    with pytest.raises(ValueError, match=f"{store}/data/state has 188 frames, but the last episode ends at 189"):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")


def test_store_without_episodes_is_refused(store: Path, tmp_path: Path) -> None:
    cut(store, "meta/episode_ends", 0)
    with pytest.raises(ValueError, match=r"meta/episode_ends has shape \(0,\) and type int64, expected"):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")

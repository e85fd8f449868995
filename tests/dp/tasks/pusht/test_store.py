import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dp.tasks.pusht.store import ReplayBuffer

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
@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_missing_or_corrupt_chunk_is_named(store: Path, tmp_path: Path, chunk: str, damage: str) -> None:
    if damage == "missing":
        (store / chunk).unlink()
    else:
        (store / chunk).write_bytes(b"garbage" * 10)
    with pytest.raises(ValueError, match=damage) as caught:
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")
    assert str(store / chunk) in str(caught.value)
    assert f"Delete {store} and run again" in str(caught.value)


@pytest.mark.parametrize("name", ["data/state", "data/action", "meta/episode_ends"])
def test_missing_array_is_named_beside_those_there_are(store: Path, tmp_path: Path, name: str) -> None:
    shutil.rmtree(store / name)
    with pytest.raises(ValueError, match=f"has no array '{name}' .it has .*'data/.*'.* PushT data set") as caught:
        ReplayBuffer.load(store, NAMES, tmp_path)
    assert str(store) in str(caught.value)


def test_unreadable_metadata_is_named(store: Path, tmp_path: Path) -> None:
    (store / "data/state/.zarray").write_text("{")
    with pytest.raises(ValueError, match=r"data/state/\.zarray.*Delete"):
        ReplayBuffer.load(store, NAMES, tmp_path)


def test_missing_store_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no data set at .*nowhere: give dataset\.path=PATH or set DP_PUSHT_ZARR"):
        ReplayBuffer.load(tmp_path / "nowhere", NAMES)


@pytest.mark.parametrize(
    ("array", "index", "value", "message"),
    [
        ("meta/episode_ends", 2, 51, "meta/episode_ends must increase, but does not at episode 2"),
        ("meta/episode_ends", 0, 0, "meta/episode_ends must increase, but does not at episode 0"),
        ("meta/episode_ends", 5, 190, "data/img has 189 frames, but the last episode ends at 190"),
        ("data/state", (7, 4), np.nan, "data/state is not finite at frame 7"),
        ("data/action", (188, 0), -np.inf, "data/action is not finite at frame 188"),
        ("data/img", (40, 5, 5, 1), 0.5, "data/img holds 0.5 in frames 32-64, expected integers 0..255"),
        ("data/img", (40, 5, 5, 1), 256, "data/img holds 256.0 in frames 32-64"),
        ("data/img", (40, 5, 5, 1), -1, "data/img holds -1.0 in frames 32-64"),
        ("data/img", (188, 0, 0, 0), np.nan, "data/img holds nan in frames 160-189"),
    ],
)
def test_unsound_values_are_refused(
    store: Path, tmp_path: Path, array: str, index: object, value: float, message: str
) -> None:
    rewrite(store, array, index, value)
    with pytest.raises(ValueError, match=f"{store}/{message}.*Delete {store} and run again"):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")


def test_arrays_of_different_lengths_are_refused(store: Path, tmp_path: Path) -> None:
    cut(store, "data/action", 188)
    with pytest.raises(ValueError, match=f"{store}/data/action has 188 frames, but the last episode ends at 189.*Del"):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")


def test_store_without_episodes_is_refused(store: Path, tmp_path: Path) -> None:
    cut(store, "meta/episode_ends", 0)
    with pytest.raises(ValueError, match=r"meta/episode_ends has shape \(0,\), expected .*Delete"):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")

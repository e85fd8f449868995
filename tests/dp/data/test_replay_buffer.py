import logging
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from dp.data import ReplayBuffer, replay_buffer

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


def test_second_load_takes_images_from_the_cache(small_zarr: Path, tmp_path: Path) -> None:
    first = ReplayBuffer.load(small_zarr, NAMES, tmp_path)
    (cached,) = tmp_path.glob("[!.]*")
    again = ReplayBuffer.load(small_zarr, NAMES, tmp_path)
    np.testing.assert_array_equal(first.arrays["img"], again.arrays["img"])
    marked = first.arrays["img"].copy()
    marked[0] += 1
    np.save(cached, marked)
    np.testing.assert_array_equal(ReplayBuffer.load(small_zarr, NAMES, tmp_path).arrays["img"], marked)


def test_cache_goes_to_the_folder_of_the_environment_variable(
    small_zarr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "mine"))
    ReplayBuffer.load(small_zarr, ["img"])
    assert len(list((tmp_path / "mine").glob("*.npy"))) == 1


def test_changed_chunk_invalidates_the_cache(store: Path, tmp_path: Path) -> None:
    ReplayBuffer.load(store, NAMES, tmp_path / "cache")
    rewrite(store, "data/img", (40, 5, 5), 123)
    assert (ReplayBuffer.load(store, NAMES, tmp_path / "cache").arrays["img"][40, 5, 5] == 123).all()


@pytest.mark.parametrize("keep", [0, 30, 1000])  # nothing; half of numpy's magic and header; header and some pixels
def test_damaged_cache_is_ignored_and_replaced(
    small_zarr: Path, tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    images = ReplayBuffer.load(small_zarr, NAMES, tmp_path).arrays["img"].copy()
    (cached,) = tmp_path.glob("[!.]*")
    cached.write_bytes(cached.read_bytes()[:keep])
    np.testing.assert_array_equal(ReplayBuffer.load(small_zarr, NAMES, tmp_path).arrays["img"], images)
    assert f"ignoring the unreadable cache {cached}" in caplog.text
    np.testing.assert_array_equal(np.load(cached), images)


def test_damaged_header_of_the_cache_is_ignored(small_zarr: Path, tmp_path: Path) -> None:
    images = ReplayBuffer.load(small_zarr, NAMES, tmp_path).arrays["img"].copy()
    (cached,) = tmp_path.glob("[!.]*")
    cached.write_bytes(cached.read_bytes().replace(b"}", b" ", 1))  # numpy's header parser raises a TokenError here
    np.testing.assert_array_equal(ReplayBuffer.load(small_zarr, NAMES, tmp_path).arrays["img"], images)


def test_unwritable_cache_only_warns(small_zarr: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.touch()
    with caplog.at_level(logging.WARNING):
        buffer = ReplayBuffer.load(small_zarr, NAMES, file / "cache")
    assert len(buffer.arrays["img"]) == 189
    assert "images are not cached" in caplog.text


def test_a_disk_without_room_only_warns(small_zarr: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = ReplayBuffer.load(small_zarr, NAMES, tmp_path / "room").arrays["img"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (images.nbytes // 2, limits[1]))
    try:
        again = ReplayBuffer.load(small_zarr, NAMES, tmp_path / "full").arrays["img"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    np.testing.assert_array_equal(again, images)
    assert "images are not cached" in caplog.text
    assert not list((tmp_path / "full").glob("[!.]*"))


def test_what_cannot_be_decoded_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    rewrite(store, "data/img", (40, 5, 5), 0.5)
    with pytest.raises(ValueError, match="expected integers"):
        ReplayBuffer.load(store, NAMES, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("[!.]*"))


FILLER = """
import sys, time
from pathlib import Path
from dp.data import replay_buffer
def fill(images):
    print("filling", flush=True)
    images[:] = 7
    time.sleep(float(sys.argv[2]))
replay_buffer._cached(Path(sys.argv[1]), (10,), fill)
print("done", flush=True)
"""


def filler(file: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILLER, str(file), str(seconds)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True)


def test_one_process_fills_the_cache_and_those_that_come_meanwhile_wait_for_it(tmp_path: Path) -> None:
    processes = [filler(tmp_path / "images.npy", 5) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert sorted(said) == [["done"], ["filling", "done"]]


def test_what_a_killed_process_left_of_the_cache_is_used_up_by_the_next(tmp_path: Path) -> None:
    file = tmp_path / "images.npy"
    with filler(file, 600) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "filling\n"
        process.kill()
    assert not file.exists()
    assert (replay_buffer._cached(file, (10,), lambda images: images.fill(8)) == 8).all()
    assert list(tmp_path.glob("[!.]*")) == [file]

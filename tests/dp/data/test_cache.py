"""Decoded images are cached, by one process, and the cache is never trusted blindly."""

import logging
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

from dp.data import cache
from dp.data.cache import Frames, default_cache_dir, load_images
from dp.data.formats.zarr import ZarrStore
from dp.data.images import stored_frames
from tests.dp.data.stores import write

PIXELS = np.random.default_rng(0).integers(0, 256, (189, 8, 8, 3), np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "store.zarr", {"img": PIXELS.astype(np.float32)})


def images_of(store: Path, cache_dir: Path | None = None) -> np.ndarray:
    return load_images([stored_frames(ZarrStore(store), "img", (3, 8, 8))], cache_dir)


def test_second_load_takes_images_from_the_cache(store: Path, tmp_path: Path) -> None:
    first = images_of(store, tmp_path / "cache")
    (cached,) = (tmp_path / "cache").glob("[!.]*")
    again = images_of(store, tmp_path / "cache")
    np.testing.assert_array_equal(first, again)
    marked = first.copy()
    marked[0] += 1
    np.save(cached, marked)
    np.testing.assert_array_equal(images_of(store, tmp_path / "cache"), marked)


def test_cache_goes_to_the_folder_of_the_environment_variable(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DP_CACHE", str(tmp_path / "mine"))
    images_of(store)
    assert len(list((tmp_path / "mine").glob("*.npy"))) == 1


def test_a_worker_that_runs_its_parents_script_again_does_not_wait_for_its_parent(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("no main guard")

    monkeypatch.setattr("dp.data.cache.check_main_guard", refuse)
    with pytest.raises(RuntimeError, match="no main guard"):
        images_of(store, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_without_a_variable_the_cache_is_where_the_system_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache_dir() == Path("/caches/dp")


def test_changed_chunk_invalidates_the_cache(store: Path, tmp_path: Path) -> None:
    images_of(store, tmp_path / "cache")
    zarr.open(str(store / "img"), mode="r+")[40, 5, 5] = 123
    assert (images_of(store, tmp_path / "cache")[40, 5, 5] == 123).all()


def test_images_are_mapped_read_only(store: Path, tmp_path: Path) -> None:
    for _ in range(2):
        images = images_of(store, tmp_path / "cache")
        assert isinstance(images, np.memmap)
        assert not images.flags.writeable


def test_several_parts_are_one_file_that_takes_what_is_cached(tmp_path: Path) -> None:
    def fill_with(value: int, most: int) -> Frames:
        calls = iter(range(most))
        return Frames(f"all{value}", (3, 2, 2, 3), lambda images: images.fill(value + 0 * next(calls)))

    one, two = fill_with(1, most=1), fill_with(2, most=1)
    load_images([one], tmp_path)
    images = load_images([one, two], tmp_path)  # the first is not written again
    assert images[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert load_images([one, two], tmp_path)[:, 0, 0, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert isinstance(images, np.memmap)


@pytest.mark.parametrize("keep", [0, 30, 1000])  # nothing; half of numpy's magic and header; header and some pixels
def test_damaged_cache_is_ignored_and_replaced(
    store: Path, tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    images = images_of(store, tmp_path / "cache").copy()
    (cached,) = (tmp_path / "cache").glob("[!.]*")
    cached.write_bytes(cached.read_bytes()[:keep])
    np.testing.assert_array_equal(images_of(store, tmp_path / "cache"), images)
    assert f"ignoring the unreadable cache {cached}" in caplog.text
    np.testing.assert_array_equal(np.load(cached), images)


def test_damaged_header_of_the_cache_is_ignored(store: Path, tmp_path: Path) -> None:
    images = images_of(store, tmp_path / "cache").copy()
    (cached,) = (tmp_path / "cache").glob("[!.]*")
    cached.write_bytes(cached.read_bytes().replace(b"}", b" ", 1))  # numpy's header parser raises a TokenError here
    np.testing.assert_array_equal(images_of(store, tmp_path / "cache"), images)


def test_unwritable_cache_only_warns(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "file"
    file.touch()
    with caplog.at_level(logging.WARNING):
        images = images_of(store, file / "cache")
    assert len(images) == 189
    assert "images are not cached" in caplog.text


def test_a_disk_without_room_only_warns(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = images_of(store, tmp_path / "room")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (images.nbytes // 2, limits[1]))
    try:
        again = images_of(store, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    np.testing.assert_array_equal(again, images)
    assert "images are not cached" in caplog.text
    assert not list((tmp_path / "full").glob("[!.]*"))


FILLER = """
import sys, time
from pathlib import Path
from dp.data import cache
def fill(images):
    print("filling", flush=True)
    images[:] = 7
    time.sleep(float(sys.argv[2]))
cache.cached(Path(sys.argv[1]), (10,), fill)
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
    assert (cache.cached(file, (10,), lambda images: images.fill(8)) == 8).all()
    assert list(tmp_path.glob("[!.]*")) == [file]

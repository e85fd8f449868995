"""Decoded images in files: written once, then memory-mapped, so that they may be larger than memory.

The mapping is read-only and shared. It needs no private memory, all processes of a machine use the same pages, and the
kernel drops pages when memory is short.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import platformdirs

from dp.files import wait_for_lock
from dp.processes import check_main_guard

log = logging.getLogger(__name__)

MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 40
"""Memory of this machine in bytes."""


@dataclass(frozen=True)
class Frames:
    """Images that have not been decoded yet.

    key: a digest that changes whenever the images do. shape: (N, Y, X, 3). write: fills a uint8 array of this shape.
    """

    key: str
    shape: tuple[int, ...]
    write: Callable[[np.ndarray], None]


def default_cache_dir() -> Path:
    """$DP_CACHE, else the operating system's place for caches: ~/.cache/dp on Linux, ~/Library/Caches/dp on macOS."""
    given = os.environ.get("DP_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("dp")


def load_images(parts: Sequence[Frames], cache_dir: Path | None = None) -> np.ndarray:
    """The images of all parts, one after the other: uint8 (N, Y, X, 3), mapped from one file in `cache_dir`.

    `cache_dir` defaults to `default_cache_dir`. If it cannot be written, the images stay in memory, with a warning.
    """
    folder = cache_dir or default_cache_dir()
    if len(parts) == 1:
        return cached(folder / f"{parts[0].key}.npy", parts[0].shape, parts[0].write)

    def write(images: np.ndarray) -> None:
        # Copy the parts that are cached, and decode the others.
        start = 0
        for part in parts:
            rows = images[start : start + part.shape[0]]
            alone = read_cache(folder / f"{part.key}.npy", part.shape)
            part.write(rows) if alone is None else _copy(alone, rows)
            start += part.shape[0]

    key = hashlib.sha256(" ".join(part.key for part in parts).encode()).hexdigest()[:24]
    shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
    return cached(folder / f"joined-{key}.npy", shape, write)


def cached(file: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """The uint8 array of this shape that `fill` writes, from `file` if an earlier call has left it there.

    If several processes want the same file, one fills it and the others wait.
    """
    images = read_cache(file, shape)
    if images is not None:
        return images
    check_main_guard()  # the parent may hold the lock that follows
    try:
        turn = wait_for_lock(file.with_name(f".{file.stem}.lock"))
    except OSError as error:
        return _uncached(shape, fill, error)
    with turn:
        images = read_cache(file, shape)
        if images is not None:
            return images
        temporary = file.with_suffix(".tmp")  # a process that was killed may have left it
        try:
            on_disk = _on_disk(temporary, shape)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            return _uncached(shape, fill, error)
        try:
            log.info("decoding %d images into %s", shape[0], file)
            fill(on_disk)
            on_disk.flush()
            temporary.replace(file)
        except BaseException:
            temporary.unlink()
            raise
    return np.load(file, mmap_mode="r")


def read_cache(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array in `file`; None if there is none, or one that is damaged or of another shape."""
    try:
        images = np.load(file, mmap_mode="r")
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever numpy's parsers raise on damage
        log.warning("ignoring the unreadable cache %s: %s", file, error)
        return None
    return images if images.shape == tuple(shape) and images.dtype == np.uint8 else None


def _copy(source: np.ndarray, target: np.ndarray, n_rows: int = 1024) -> None:
    for start in range(0, len(source), n_rows):
        target[start : start + n_rows] = source[start : start + n_rows]


def _uncached(shape: tuple[int, ...], fill: Callable[[np.ndarray], None], error: OSError) -> np.ndarray:
    if math.prod(shape) > MEMORY_BYTES:
        raise ValueError(
            f"images of {math.prod(shape) / 1e9:.0f} GB fit neither into memory nor into the cache ({error})"
        )
    log.warning("images are not cached, so the next start will be slow, too: %s", error)
    images = np.empty(shape, np.uint8)
    fill(images)
    return images


def _on_disk(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """An array that is a file. Raises OSError if the disk has no room: later, writing to it would kill us."""
    images = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has none
        with file.open("r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return images

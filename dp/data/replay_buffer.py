"""A zarr store of demonstrations, read into memory once and checked."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayBuffer:
    """Episodes end to end.

    `arrays` maps a name to (N, ...): "img" is uint8 (N, Y, X, 3) RGB, everything else float32 in the store's units.
    `episode_ends` int64 (E,): one past the last frame of each episode, as in the reference implementation.
    """

    arrays: dict[str, np.ndarray]
    episode_ends: np.ndarray

    @classmethod
    def load(cls, path: Path, names: Sequence[str], cache_dir: Path | None = None) -> "ReplayBuffer":
        """Reads the arrays `names` from the zarr v2 store at `path`.

        Decoded images are kept in `cache_dir` (default: $DP_CACHE or ~/.cache/dp), which makes the next start fast.

        Raises ValueError for a store that lacks an array, is corrupt or incomplete, or is inconsistent; the message
        names the file and what to do.
        """
        if not path.is_dir():
            raise ValueError(f"no data set at {path}: give dataset.path=PATH or set DP_PUSHT_ZARR")
        episode_ends = _read_array(path, "meta/episode_ends").astype(np.int64)
        arrays = {
            name: _read_images(path, f"data/{name}", cache_dir or default_cache_dir())
            if name == "img"
            else _read_array(path, f"data/{name}").astype(np.float32)
            for name in names
        }
        _validate(path, arrays, episode_ends)
        return cls(arrays, episode_ends)

    def __len__(self) -> int:
        return int(self.episode_ends[-1])

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    def sha256(self) -> str:
        """Of the arrays' names and values: equal for equal demonstrations, however they are stored."""
        digest = hashlib.sha256(self.episode_ends.tobytes())
        for name, array in sorted(self.arrays.items()):
            digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def episode_starts(self) -> np.ndarray:
        return np.concatenate([[0], self.episode_ends[:-1]])


def default_cache_dir() -> Path:
    return Path(os.environ.get("DP_CACHE", "~/.cache/dp")).expanduser()


def _open(path: Path, name: str) -> zarr.Array:
    metadata = path / name / ".zarray"
    if not metadata.is_file():
        held = sorted(str(p.parent.relative_to(path)) for p in path.glob("*/*/.zarray"))
        raise ValueError(f"{path} has no array {name!r} (it has {held}): is it the PushT data set?")
    try:
        array = zarr.open(str(path / name), mode="r")
    except Exception as error:
        raise ValueError(f"cannot read {metadata}: {error}. {_fix(path)}") from error
    assert isinstance(array, zarr.Array)
    return array


def _chunk_rows(path: Path, name: str, array: zarr.Array) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (rows, values) chunk by chunk. zarr itself would fill missing chunks with zeros, silently."""
    size = array.chunks[0]
    for number, start in enumerate(range(0, array.shape[0], size)):
        file = path / name / ".".join([str(number)] + ["0"] * (array.ndim - 1))
        if not file.is_file():
            raise ValueError(f"chunk {file} is missing. {_fix(path)}")
        rows = slice(start, min(start + size, array.shape[0]))
        try:
            values = np.asarray(array[rows])
        except Exception as error:
            raise ValueError(f"chunk {file} is corrupt ({error}). {_fix(path)}") from error
        yield rows, values


def _fix(path: Path) -> str:
    return f"Delete {path} and run again to download it afresh, or point dataset.path at an intact copy."


def _read_array(path: Path, name: str) -> np.ndarray:
    array = _open(path, name)
    out = np.empty(array.shape, array.dtype)
    for rows, values in _chunk_rows(path, name, array):
        out[rows] = values
    return out


def _read_images(path: Path, name: str, cache_dir: Path) -> np.ndarray:
    """Images as uint8, a quarter of the store's float32, from the cache where it has them."""
    array = _open(path, name)
    cached = cache_dir / f"{_fingerprint(path / name)}.npy"
    try:
        return np.load(cached, mmap_mode="c")  # read as it is needed, and shared by all processes
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever numpy's parsers raise on damage
        log.warning("ignoring the unreadable cache %s: %s", cached, error)
    images = np.empty(array.shape, np.uint8)
    for rows, values in _chunk_rows(path, name, array):
        with np.errstate(invalid="ignore"):
            images[rows] = values
        if not np.array_equal(images[rows], values):
            bad = values[images[rows] != values][0]
            where = f"{path / name} holds {bad} in frames {rows.start}-{rows.stop}"
            raise ValueError(f"{where}, expected integers 0..255. {_fix(path)}")
    _write_cache(cached, images)
    return images


def _write_cache(file: Path, images: np.ndarray) -> None:
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.save(stream, images)
        temporary.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        log.warning("decoded images are not cached, the next start will be slow too: %s", error)


def _fingerprint(array_path: Path) -> str:
    """Changes when any file of the array does."""
    files = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(array_path.iterdir())]
    return hashlib.sha256(json.dumps([str(array_path.resolve()), files]).encode()).hexdigest()[:24]


def _validate(path: Path, arrays: dict[str, np.ndarray], episode_ends: np.ndarray) -> None:
    if episode_ends.ndim != 1 or len(episode_ends) == 0:
        raise ValueError(f"{path}/meta/episode_ends has shape {episode_ends.shape}, expected (E,), E > 0. {_fix(path)}")
    if not (np.diff(episode_ends, prepend=0) > 0).all():
        at = int(np.flatnonzero(np.diff(episode_ends, prepend=0) <= 0)[0])
        raise ValueError(f"{path}/meta/episode_ends must increase, but does not at episode {at}. {_fix(path)}")
    for name, array in arrays.items():
        if len(array) != episode_ends[-1]:
            end = episode_ends[-1]
            raise ValueError(
                f"{path}/data/{name} has {len(array)} frames, but the last episode ends at {end}. {_fix(path)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            at = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))[0])
            raise ValueError(f"{path}/data/{name} is not finite at frame {at}. {_fix(path)}")

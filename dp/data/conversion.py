"""Demonstrations from one file format to another, without loss. Images become 8-bit, as training reads them.

An unfinished result lies in a folder next to it, `.<name>.part`. It gets its name when it is whole and has been read
back.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dp.data.cache import load_images
from dp.data.episodes import Episodes
from dp.data.formats import missing, open_store
from dp.data.formats.store import Store
from dp.data.images import stored_frames
from dp.data.reading import find_ends, name_of_ends, numeric
from dp.data.summary import count_frames, is_image
from dp.files import lock, write_json
from dp.progress import Progress

log = logging.getLogger(__name__)

Format = Literal["zarr", "lerobot", "hdf5"]

Step = Callable[[int], object]
"""Counts frames that have been written."""

SETTINGS = "conversion.json"

DEFAULT_FPS = 10.0
"""Control steps per second of a data set that does not say."""


def convert(source: Store, to: Path, format: Format, fps: float | None = None) -> str:
    """Writes the demonstrations of `source` to `to`. A conversion that was killed continues.

    Args:
        to: a folder, or a file of format="hdf5". If it holds these demonstrations, nothing is written.
        fps: control steps per second. None: as `source` says, and if it does not, LeRobot's format gets `DEFAULT_FPS`.

    Returns the digest of the arrays, which is that of what was read back from `to`.

    Raises:
        ValueError: if `to` holds something else, another process writes it, or an array cannot be read.
    """
    fps = fps or source.fps
    if fps is None and format == "lerobot":
        fps = DEFAULT_FPS
        log.warning("WARNING: %s does not say how many control steps per second it has: fps=%g", source.path, fps)
    episodes = gather(source)
    expected = digest(episodes)
    if to.exists():
        if stored_digest(open_store(to)) != expected:
            raise ValueError(f"{to} holds something else than {source.path}: set another to=PATH")
        log.info("%s holds these demonstrations already", to)
        return expected
    staging = to.with_name(f".{to.name}.part")
    taken = lock(staging / ".lock")
    if taken is None:
        raise ValueError(f"{to} is being written by another process: wait for it, or set another to=PATH")
    with taken:
        _check_staging(staging, {"sha256": expected, "format": format, "fps": fps}, to)
        with closing(Progress(total=len(episodes), desc=f"writing {format}", unit="frame")) as bar:
            result = _write(format, episodes, source.tasks, staging, fps, bar.update)
        if stored_digest(open_store(result)) != expected:
            raise ValueError(f"{result} does not read back as it was written: delete {staging} and try another disk")
        result.replace(to)
    shutil.rmtree(staging)
    return expected


def gather(store: Store) -> Episodes:
    """Every array of numbers with a row per frame, by its plain name (`Store.plain`). Images lie in a mapped file.

    A warning names the arrays that are left out. Raises ValueError for two arrays of the same plain name.
    """
    ends, names = _columns(store)
    known = {ends, *names.values()}
    left_out = [name for name in store.names if name not in known and store.plain(name) is not None]
    if left_out:
        log.warning("WARNING: left out, as they are not numbers of every frame: %s", ", ".join(left_out))
    arrays = {plain: _read(store, name) for plain, name in names.items()}
    return Episodes(arrays, find_ends(store, count_frames(store), ends))


def _columns(store: Store) -> tuple[str, dict[str, str]]:
    """The array of episode ends, and plain name -> name of every array of numbers with a row per frame."""
    n_frames = count_frames(store)
    ends = name_of_ends(store, n_frames)
    names: dict[str, str] = {}
    for name in store.names:
        header, plain = store.open(name), store.plain(name)
        if plain is None or name == ends or not numeric(header) or header.shape[0] != n_frames:
            continue
        if plain in names:
            raise ValueError(f"{store.path} has {names[plain]} and {name}, which are both called {plain}: rename one")
        names[plain] = name
    return ends, names


def _read(store: Store, name: str) -> np.ndarray:
    header = store.open(name)
    if not is_image(header):
        return store.read(name)
    sides = header.shape[1:3] if header.shape[3] == 3 else header.shape[2:]
    return load_images([stored_frames(store, name, (3, *sides))])


def digest(episodes: Episodes) -> str:
    """SHA-256 of names, types and values, which does not depend on the format. A row of one number is that number."""
    columns = {name: (array, _blocks(array)) for name, array in episodes.arrays.items()}
    return _digest(episodes.episode_ends, columns)


def _blocks(array: np.ndarray, n_rows: int = 1024) -> Iterator[np.ndarray]:
    return (array[start : start + n_rows] for start in range(0, len(array), n_rows))


def _digest(episode_ends: np.ndarray, columns: Mapping[str, tuple[Any, Iterable[np.ndarray]]]) -> str:
    """name -> (what has its dtype and shape, its values in order)."""
    found = hashlib.sha256(episode_ends.astype("<i8").tobytes())
    for name, (header, blocks) in sorted(columns.items()):
        row = [n for n in header.shape[1:] if n != 1]
        found.update(f"{name} {header.dtype.kind}{header.dtype.itemsize} {row}".encode())
        for block in blocks:
            found.update(np.ascontiguousarray(block, block.dtype.newbyteorder("<")).data)
    return found.hexdigest()


def stored_digest(store: Store) -> str:
    """`digest` of what `gather` reads, if its images are stored as 8-bit. Nothing of it is kept."""
    ends, names = _columns(store)
    columns = {plain: (store.open(name), (values for _, values in store.blocks(name))) for plain, name in names.items()}
    return _digest(find_ends(store, count_frames(store), ends), columns)


def _check_staging(staging: Path, settings: Mapping[str, Any], to: Path) -> None:
    """Begins a conversion in the folder `staging`, or raises ValueError if another one has begun there."""
    file = staging / SETTINGS
    if not file.exists():
        write_json(file, settings)
    elif json.loads(file.read_text()) != settings:
        raise ValueError(f"{staging} holds an unfinished conversion of other data: delete it, or set another to=PATH")


def _write(
    format: Format, episodes: Episodes, tasks: Sequence[str], staging: Path, fps: float | None, step: Step
) -> Path:
    """Writes what `staging` lacks. Returns the path of the whole."""
    if format == "zarr":
        from dp.data.writing.zarr import write_zarr

        return write_zarr(episodes, staging / "whole.zarr", fps, tasks, step)
    try:
        if format == "lerobot":
            from dp.data.writing.lerobot import write_lerobot

            assert fps is not None
            return write_lerobot(episodes, staging / "whole", fps, tasks, step)
        from dp.data.writing.hdf5 import write_hdf5
    except ModuleNotFoundError as error:
        raise missing("robomimic" if format == "hdf5" else format, error) from error
    return write_hdf5(episodes, staging / "whole.hdf5", fps, tasks, step)

"""Episodes as a zarr store in the layout of the reference implementation: data/<name>, meta/episode_ends."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dp.data.episodes import Episodes
from dp.data.recording import COMPRESSOR, ENDS, chunk_rows, write_metadata
from dp.files import write_bytes, write_json


def write_zarr(
    episodes: Episodes, store: Path, fps: float | None, tasks: Sequence[str], step: Callable[[int], object]
) -> Path:
    """Writes the chunks that the folder `store` lacks, metadata last. Returns `store`.

    fps, tasks: attributes of the store, see `dp.data.formats.store.Store`.
    step: called with the number of frames that every array holds in addition. Format 2, which all versions read.
    """
    for group in ("", "data", "meta"):
        write_json(store / group / ".zgroup", {"zarr_format": 2})
    write_json(store / ".zattrs", {"fps": fps, "tasks": [*tasks]})
    for number, (name, array) in enumerate(episodes.arrays.items()):
        last = number == len(episodes.arrays) - 1
        _write(store, f"data/{name}", array, step if last else lambda n_frames: None)
    _write(store, ENDS, episodes.episode_ends, lambda n_frames: None)
    return store


def _write(store: Path, name: str, array: np.ndarray, step: Callable[[int], object]) -> None:
    row, dtype = array.shape[1:], array.dtype.newbyteorder("<")
    n_rows = chunk_rows(name, dtype.str, row)
    for number, start in enumerate(range(0, len(array), n_rows)):
        values = array[start : start + n_rows]
        file = store / name / ".".join([str(number), *("0" for _ in row)])
        if not file.exists():
            padded = np.zeros((n_rows, *row), dtype)
            padded[: len(values)] = values
            write_bytes(file, COMPRESSOR.encode(padded))
        step(len(values))
    write_metadata(store / name, dtype.str, row, n_rows, len(array))

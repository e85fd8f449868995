"""A zarr store that grows by whole demonstrations and survives being killed.

    data/<array> (N, ...) for every frame   meta/episode_ends (E,)   meta/<fact> (E, ...) for every episode

Chunks are written before the lengths that make them visible, `meta/episode_ends` last: an episode exists once that one
small file has its new name. zarr's own `append` would make the array longer first and fill it later, so the files are
written here; version 2 of the format, which both versions of zarr read, is two kinds of file.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc

from dp.files import differing, lock, write_bytes, write_json
from dp.tasks.demonstration import EXECUTED, Demonstration

COMPRESSOR = Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)
"""Compressor of the official data set."""

Columns = Mapping[str, tuple[str, tuple[int, ...]]]
"""Array -> (dtype, shape of one row)."""

STORE = "collected.zarr"
"""Name of the store that a collection makes."""

ENDS = "meta/episode_ends"

CHUNK_ROWS = {"data": 4096, "meta": 1024}
"""A thousand episodes are some 150 files, and an append rewrites one chunk of each array, however many there are."""

MAX_CHUNK_BYTES = 4 << 20
"""Largest chunk of images, because an append rewrites the last chunk."""

SETTINGS = "collected_with"
"""The attribute of the store that says how it was made."""


def n_episodes(path: Path) -> int:
    """Number of episodes in the store at `path`."""
    return _length(path / ENDS)


def n_frames(path: Path) -> int:
    """Number of frames in the store at `path`."""
    ends = _read(path / ENDS)
    return int(ends[-1]) if len(ends) else 0


def last_seed(path: Path) -> int | None:
    """Seed of the last one; None if there is none."""
    seeds = _read(path / "meta/seed")[: n_episodes(path)]
    return int(seeds[-1]) if len(seeds) else None


class DemonstrationStore:
    """The store at `path`, for this process alone, created if it does not exist. A context manager.

    Half-written rows that a killed process left are cut off.

    Args:
        path: a directory.
        settings: how its demonstrations are made, in JSON's types.
        frames, facts: arrays under data/ and meta/ (`Task.columns`).
        aliases: values in the settings of an earlier version -> today's.

    Raises:
        ValueError: if `path` holds something else, or demonstrations made with other settings, or is in use.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        frames: Columns,
        facts: Columns,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._specs = {f"data/{name}": spec for name, spec in frames.items()}
        self._specs |= {f"meta/{name}": spec for name, spec in facts.items()}
        self._lock = lock(path.with_name(f".{path.name}.lock"))
        if self._lock is None:
            raise ValueError(f"{path} is in use by another process: wait for it or set another workspace.path")
        try:
            if not path.exists():
                _create(path, settings, self._specs)
            _check(path, settings, self._specs, aliases or {})
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.n_episodes = _length(self.path / ENDS)
        self.n_frames = int(_read(self.path / ENDS)[-1]) if self.n_episodes else 0
        lengths = {"data": self.n_frames, "meta": self.n_episodes}
        self._columns = {
            name: _Column(self.path, name, *spec, lengths[name.partition("/")[0]]) for name, spec in self._specs.items()
        }
        self._ends = _Column(self.path, ENDS, "<i8", (), self.n_episodes)
        for column in self._columns.values():
            column.show()

    def append(self, demonstrations: Sequence[Demonstration], source: str) -> None:
        """Adds whole episodes, in this order. When it returns, all of them are on the disk."""
        if not demonstrations:
            return
        ends = self.n_frames + np.cumsum([len(d) for d in demonstrations])
        frames = [_with_executed(demonstration.frames()) for demonstration in demonstrations]
        facts = [{**demonstration.facts(), "source": source} for demonstration in demonstrations]
        # New rows lie behind the ends of the arrays until `show` writes the new lengths.
        for name, column in self._columns.items():
            group, _, array = name.partition("/")
            of_all = [episode[array] for episode in (frames if group == "data" else facts)]
            column.write(np.concatenate(of_all) if group == "data" else of_all)
        self._ends.write(ends)
        for column in (*self._columns.values(), self._ends):
            column.show()
        self.n_episodes, self.n_frames = self._ends.length, int(ends[-1])

    @property
    def last_seed(self) -> int | None:
        """Seed of the last episode; None if there is none."""
        return last_seed(self.path)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> "DemonstrationStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_executed(frames: Mapping[str, Any]) -> Mapping[str, Any]:
    """Adds the executed actions, which are those that were meant unless a demonstration says otherwise."""
    return {EXECUTED: frames["action"], **frames} if "action" in frames else frames


class _Column:
    """One array. Rows are written behind its end first; a new length then shows them."""

    def __init__(self, store: Path, name: str, dtype: str, row: tuple[int, ...], length: int) -> None:
        self.folder, self.dtype, self.row, self.length = store / name, dtype, row, length
        self.chunk_rows = chunk_rows(name, dtype, row)
        full = length - length % self.chunk_rows
        self._open_chunk = _read(self.folder)[full:length]

    def write(self, values: Any) -> None:
        rows = np.concatenate([self._open_chunk, np.asarray(values, self.dtype)])
        number = self.length // self.chunk_rows
        self.length += len(rows) - len(self._open_chunk)
        # Rewrite the last, partly filled chunk and write the chunks after it, padded with zeros.
        for start in range(0, len(rows), self.chunk_rows):
            self._open_chunk = rows[start : start + self.chunk_rows]
            padded = np.zeros((self.chunk_rows, *self.row), self.dtype)
            padded[: len(self._open_chunk)] = self._open_chunk
            name = ".".join([str(number), *("0" for _ in self.row)])
            write_bytes(self.folder / name, COMPRESSOR.encode(padded))
            number += 1
        if len(self._open_chunk) == self.chunk_rows:
            self._open_chunk = self._open_chunk[:0]

    def show(self) -> None:
        write_metadata(self.folder, self.dtype, self.row, self.chunk_rows, self.length)


def read_settings(path: Path) -> dict[str, Any] | None:
    """The settings with which the store at `path` was collected; None if it was not."""
    try:
        if not (path / ".zattrs").is_file():  # opening a pipe would wait for ever
            return None
        return json.loads((path / ".zattrs").read_text()).get(SETTINGS)
    except (OSError, ValueError, AttributeError):
        return None


def _create(path: Path, settings: Mapping[str, Any], specs: Columns) -> None:
    """Creates an empty store, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for group in ("", "data", "meta"):
        write_json(temporary / group / ".zgroup", {"zarr_format": 2})
    write_json(temporary / ".zattrs", {SETTINGS: settings})
    for name, (dtype, row) in {**specs, ENDS: ("<i8", ())}.items():
        write_metadata(temporary / name, dtype, row, chunk_rows(name, dtype, row), 0)
    temporary.rename(path)


def _check(path: Path, settings: Mapping[str, Any], specs: Columns, aliases: Mapping[str, str]) -> None:
    held = read_settings(path)
    if held is not None:
        held = {key: aliases.get(value, value) if isinstance(value, str) else value for key, value in held.items()}
    else:
        raise ValueError(f"{path} holds something that was not collected: set another workspace.path")
    if "task" not in held:  # stores of before say nothing
        settings = {key: value for key, value in settings.items() if key != "task"}
    if others := differing(held, settings):
        raise ValueError(f"{path} was collected with other settings ({others}): set another workspace.path")
    missing = [name for name in (*specs, ENDS) if not (path / name / ".zarray").is_file()]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)} (another version may have collected it): set another workspace.path"
        )


def chunk_rows(name: str, dtype: str, row: tuple[int, ...]) -> int:
    row_bytes = np.dtype(dtype).itemsize * math.prod(row)
    return max(1, min(CHUNK_ROWS[name.partition("/")[0]], MAX_CHUNK_BYTES // row_bytes))


def _read(folder: Path) -> np.ndarray:
    array = zarr.open(str(folder), mode="r")
    assert isinstance(array, zarr.Array)
    return np.asarray(array[:])


def _length(folder: Path) -> int:
    return json.loads((folder / ".zarray").read_text())["shape"][0]


def write_metadata(folder: Path, dtype: str, row: tuple[int, ...], chunk_rows: int, length: int) -> None:
    fill_value = {"f": 0.0, "i": 0, "u": 0, "b": False, "U": ""}[dtype[1]]
    metadata = {
        "chunks": [chunk_rows, *row],
        "compressor": COMPRESSOR.get_config(),
        "dtype": dtype,
        "fill_value": fill_value,
        "filters": None,
        "order": "C",
        "shape": [length, *row],
        "zarr_format": 2,
    }
    write_json(folder / ".zarray", metadata)

"""A zarr store: format 2 or 3, a folder or a .zip, any chunking, arrays at any depth."""

import hashlib
import itertools
import json
import logging
import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dp.data.cache import MEMORY_BYTES
from dp.data.formats.bounded import BoundedZipStore, check_codecs, max_file_bytes
from dp.data.formats.store import FREE_BYTES, MAX_RATIO, Store, file_stats
from dp.tasks.demonstration import EXECUTED

log = logging.getLogger(__name__)

BLOCK_BYTES = 16 << 20
"""Decoded bytes that one read of `blocks` asks for, at least one row of chunks."""

METADATA = (".zarray", ".zgroup", ".zattrs", ".zmetadata", "zarr.json")

MAX_METADATA_BYTES, MAX_CHUNKS = 16 << 20, 10_000_000
"""Limits of a store's metadata. Reading more would take minutes, or all memory."""

MAX_CHUNK_BYTES = 2 << 30
"""Decoded size of a chunk; zarr's codecs take no larger one."""

NUMBERS = "biufcmM"
"""Kinds of types with a fixed size. Texts may be longer than their type says; they are never read."""

NO_DAMAGE = (MemoryError, PermissionError)
"""Errors of reading that say nothing about the files, so they come without advice to delete data."""


class ZarrStore(Store):
    """The arrays of the store at `path`, by name ("data/action").

    Args:
        path: a folder, or a .zip file of one.
        complete: whether the writer stores every chunk, so that a missing one is lost. By zarr's rules a missing chunk
            holds nothing but the fill value.
        advice: a sentence for errors about damage.

    Raises:
        ValueError: if there is no zarr store, or its metadata are not ordinary files.
    """

    choice = "zarr"

    def __init__(self, path: Path, complete: bool = False, advice: str = "") -> None:
        self.path, self.complete, self.advice = path, complete, advice
        self._zip: Any = None
        if path.is_file():
            self.names, self._members = _names_in_zip(path)
            self._zip = BoundedZipStore(str(path), mode="r")
        elif path.is_dir():
            self.names = _names_in_folder(path)
        else:
            raise ValueError(f"there is no data set at {path}")
        if not self.names:
            raise ValueError(
                f"{path} holds no zarr array: expected a zarr store (a folder or a .zip), "
                "a LeRobot data set (a folder with meta/info.json), or an HDF5 file"
            )
        self._arrays: dict[str, Any] = {}
        self._warned: set[str] = set()

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """Those of the root group: `fps` and `tasks`, if `write_zarr` wrote it."""
        try:
            return zarr.open_group(self._zip or str(self.path), mode="r").attrs.asdict()
        except NO_DAMAGE:
            raise
        except Exception:  # arrays without a group, or a group without readable attributes
            return {}

    def open(self, name: str) -> Any:
        """The zarr array `name`. Raises ValueError for metadata that cannot be read."""
        if name not in self._arrays:
            try:
                if self._zip is not None:
                    array = zarr.open(self._zip, path=name, mode="r")
                else:
                    array = zarr.open(str(self.path / name), mode="r")
            except NO_DAMAGE:
                raise
            except Exception as error:
                message = f"cannot read the array {self.path / name}: {error}"
                raise ValueError(f"{message}. {_unknown(error) or self.advice}".rstrip(". ")) from error
            self._check_size(name, array)
            self._arrays[name] = array
        return self._arrays[name]

    def _check_size(self, name: str, array: Any) -> None:
        """Raises ValueError for an array that declares more than its files can hold, or a file that holds more than a
        chunk can: either could take any amount of memory.

        It allocates nothing and opens no chunk.
        """
        expected = max_file_bytes(array) if array.dtype.kind in NUMBERS else None
        for file, size in self._sizes(name):
            if expected is not None and size > max(expected, MAX_METADATA_BYTES if file.name in METADATA else 0):
                raise ValueError(f"{file} has {size:,} bytes, but the array declares at most {expected:,} for a chunk")
        chunk = math.prod(array.chunks) * array.dtype.itemsize
        if min(array.chunks, default=1) < 1 or chunk > MAX_CHUNK_BYTES:
            raise ValueError(
                f"{self.path / name} declares chunks of {chunk:,} bytes, expected 1 to {MAX_CHUNK_BYTES:,}"
            )
        size = math.prod(array.shape) * array.dtype.itemsize
        if size > FREE_BYTES and size > MAX_RATIO * (stored := self._stored_bytes(name)):
            raise ValueError(
                f"{self.path / name} declares {size:,} bytes for shape {array.shape}, but its chunks hold {stored:,}: "
                "no recording compresses that well"
            )

    def _stored_bytes(self, name: str) -> int:
        if self._zip is not None:
            return self.path.stat().st_size
        return sum(size for _, size in self._sizes(name))

    def _sizes(self, name: str) -> Iterator[tuple[Path, int]]:
        """The files of an array with their bytes, unpacked from the zip. Raises ValueError for what is not a file."""
        if self._zip is not None:
            for file, size in self._members.items():
                if file.startswith(f"{name}/"):
                    yield self.path / file, size
            return
        for entry in _files(self.path / name):
            if not entry.is_file():
                raise ValueError(f"{entry.path} is not an ordinary file")
            yield Path(entry.path), entry.stat().st_size

    def read(self, name: str) -> np.ndarray:
        """The whole array.

        Raises ValueError for an array that memory cannot hold, and for a chunk that is missing or cannot be decoded.
        """
        array = self.open(name)
        if array.nbytes > MEMORY_BYTES:
            raise ValueError(f"{self.path / name} holds {array.nbytes / 1e9:.0f} GB, more than this machine's memory")
        self.check_chunks(name)
        try:
            return np.asarray(array[...])  # zarr reads in a thread of its own: one call waits for it once
        except NO_DAMAGE:
            raise
        except Exception as error:
            raise self._damage(name, slice(0, (*array.shape, 1)[0]), error) from error

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (rows, values), whole rows of chunks at a time. Raises as `read` does."""
        array = self.open(name)
        self.check_chunks(name)
        chunk_rows, row_bytes = array.chunks[0], max(1, array.nbytes // max(1, array.shape[0]))
        size = chunk_rows * max(1, BLOCK_BYTES // (chunk_rows * row_bytes))
        for start in range(0, array.shape[0], size):
            rows = slice(start, min(start + size, array.shape[0]))
            try:
                values = np.asarray(array[rows])
            except NO_DAMAGE:
                raise
            except Exception as error:
                raise self._damage(name, rows, error) from error
            yield rows, values

    def missing_chunks(self, name: str) -> list[str]:
        """Chunks, or shards of them, that have no file, as paths within the store."""
        array = self.open(name)
        files = getattr(array, "shards", None) or array.chunks  # a shard's file holds many chunks
        grid = [-(-n // rows) for n, rows in zip(array.shape, files, strict=True)]
        if math.prod(grid) > MAX_CHUNKS:
            raise ValueError(f"{self.path / name} has {math.prod(grid)} chunks, expected at most {MAX_CHUNKS}")
        keys = (f"{name}/{array.metadata.encode_chunk_key(index)}" for index in itertools.product(*map(range, grid)))
        files_in = lru_cache(self._files_in)  # a folder is listed once: faster than a look at each of its files
        return [key for key in keys if key.rpartition("/")[2] not in files_in(key.rpartition("/")[0])]

    def check_chunks(self, name: str, complete: bool = False) -> None:
        """Raises ValueError for codecs that may unpack to anything, and for a chunk that was lost.

        It was lost if the store's writer never leaves one out, if there is nothing to read instead, or if `complete`
        says that no chunk of this array can be all fill value. Otherwise a missing chunk gives a warning.
        """
        array = self.open(name)
        try:
            check_codecs(array.metadata)
        except ValueError as error:
            raise ValueError(f"cannot read the array {self.path / name}: {error}. {_unknown(error)}") from error
        missing, fill_value = self.missing_chunks(name), array.fill_value
        if missing and (self.complete or complete or fill_value is None):
            raise ValueError(self._with_advice(f"chunk {self.path / missing[0]} is missing"))
        if missing and name not in self._warned:
            self._warned.add(name)
            log.warning(
                "WARNING: %d chunks of %s are not stored, %s is the first: their frames read as %s. This is right only "
                "if the writer left them out because they hold nothing else",
                len(missing), self.path / name, missing[0], fill_value,
            )  # fmt: skip

    def check_complete(self, name: str) -> None:
        self.check_chunks(name, complete=True)

    def remark(self, name: str) -> str:
        missing = len(self.missing_chunks(name))
        return f"; {missing} chunks are not stored and read as {self.open(name).fill_value}" if missing else ""

    def observed(self, name: str) -> bool:
        return name != f"data/{EXECUTED}"

    def fingerprint(self, name: str) -> str:
        folder = self.path if self._zip is not None else self.path / name
        described: list[Any] = [str((self.path / name).resolve()), file_stats(folder)]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]

    def _files_in(self, folder: str) -> frozenset[str]:
        if self._zip is not None:
            return frozenset(name.rpartition("/")[2] for name in self._members if name.rpartition("/")[0] == folder)
        if not (self.path / folder).is_dir():
            return frozenset()
        return frozenset(file.name for file in (self.path / folder).iterdir())

    def _damage(self, name: str, rows: slice, error: Exception) -> ValueError:
        """Names the first chunk of `rows` that cannot be decoded. There is no advice if the machine is at fault."""
        array = self.open(name)
        if isinstance(error, OSError) or "start new thread" in str(error):
            return ValueError(f"{self.path / name} cannot be read now: {error}")
        bounds = [(rows.start, rows.stop), *((0, n) for n in array.shape[1:])][: array.ndim]
        corners = itertools.product(*(range(*ends, c) for ends, c in zip(bounds, array.chunks, strict=True)))
        for index in corners:
            try:
                array[tuple(slice(i, i + c) for i, c in zip(index, array.chunks, strict=True))]
            except Exception as first:
                numbers = tuple(i // c for i, c in zip(index, array.chunks, strict=True))
                key = array.metadata.encode_chunk_key(numbers)
                return ValueError(self._with_advice(f"chunk {self.path / name / key} is corrupt ({first})"))
        return ValueError(self._with_advice(f"{self.path / name} cannot be read: {error}"))

    def _with_advice(self, message: str) -> str:
        return f"{message}. {self.advice}" if self.advice else message


def _names_in_folder(path: Path) -> list[str]:
    names = []
    for folder, folders, files in os.walk(path, followlinks=True):
        _check_metadata(Path(folder), files)
        metadata = Path(folder) / "zarr.json"
        if ".zarray" in files or ("zarr.json" in files and _is_array(metadata.read_bytes(), metadata)):
            names.append(Path(folder).relative_to(path).as_posix())
            folders.clear()  # chunks
    return sorted(names)


def _check_metadata(folder: Path, files: list[str]) -> None:
    """Raises ValueError for metadata that are not files (reading a pipe would wait for ever) or too large."""
    for file in (folder / name for name in METADATA if name in files):
        about = file.stat()
        if not stat.S_ISREG(about.st_mode) or about.st_size > MAX_METADATA_BYTES:
            raise ValueError(f"{file} is not an ordinary file")


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything below `folder` that is no folder."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _files(Path(entry.path))
        else:
            yield entry


def _names_in_zip(path: Path) -> tuple[list[str], dict[str, int]]:
    """The arrays, and the unpacked size of every file. Raises ValueError for a zip that may unpack to anything."""
    try:
        with zipfile.ZipFile(path) as bundle:
            names, members = [], {info.filename: info.file_size for info in bundle.infolist()}
            for info in bundle.infolist():
                file, _, kind = info.filename.rpartition("/")
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{path / info.filename} is packed in an unusual way, expected stored or deflated")
                if kind in METADATA and info.file_size > MAX_METADATA_BYTES:
                    raise ValueError(
                        f"{path / info.filename} unpacks to {info.file_size:,} bytes, too many for metadata"
                    )
                if kind == ".zarray" or (
                    kind == "zarr.json" and _is_array(_content(bundle, info), path / info.filename)
                ):
                    names.append(file)
            return sorted(names), members
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is a file, expected a zarr store: a folder or a .zip of one ({error})") from error


def _content(bundle: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with bundle.open(info) as file:
        return file.read(info.file_size)  # without a number it unpacks a gigabyte, whatever the size


def _unknown(error: Exception) -> str:
    """Advice about an unknown codec or number type, empty for other errors."""
    unknown = any(word in str(error) for word in ("codec", "data type"))
    return "Store the array again as plain numbers with another codec, Blosc or zstd" if unknown else ""


def _is_array(metadata: bytes, file: Path) -> bool:
    try:
        return json.loads(metadata)["node_type"] == "array"
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"cannot read {file}: {error!r}") from error

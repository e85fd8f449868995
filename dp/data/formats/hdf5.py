"""robomimic's HDF5 files (Mandlekar et al. 2021): one group per demonstration, `data/demo_<number>`.

    data/demo_0/actions (T, Da)   data/demo_0/obs/<key> (T, ...)   mask/<filter key>: names of demonstrations

https://robomimic.github.io/docs/datasets/overview.html
"""

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dp.data.cache import MEMORY_BYTES
from dp.data.formats.bounded import COMPRESSORS, SLACK
from dp.data.formats.memory import limited
from dp.data.formats.store import (
    ENDS,
    Header,
    Store,
    check_ordinary,
    check_ratio,
    file_stats,
    first_line,
)

MAX_DEMOS, MAX_ARRAYS, MAX_DEPTH = 1_000_000, 1000, 8

MAX_CHUNK_BYTES = 256 << 20
"""Largest chunk, decoded. HDF5 holds a whole one in memory."""

ABOUT, MAX_ABOUT = "about", 16 << 20
"""Array that `write_hdf5` adds, and its most bytes: JSON with `fps` and `tasks`. Robomimic ignores it."""

FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32"}
"""Filters with a bound, by HDF5's number (H5Zpublic.h). Others may unpack to anything, or are programs."""

REPACK = "Repack the file without it: h5repack -f GZIP=4 FROM TO"


class Hdf5Store(Store):
    """The demonstrations of one file, end to end, by number.

    Args:
        path: a file.
        filter_keys: names under mask/. Only demonstrations that one of them lists are read. Empty: all of them.
        action: maps the actions (N, Da) of a demonstration, for example `dp.data.rotations.to_rotation_6d`.

    `demos` are the names of the demonstrations that are read.

    Raises ValueError if `path` is no such file, or lists no demonstrations.
    """

    choice = "robomimic"

    def __init__(
        self, path: Path, filter_keys: tuple[str, ...] = (), action: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> None:
        self.path, self._action = path, action
        check_ordinary(path)
        with _reading(path):
            self._file = h5py.File(path, "r")
            data = _member(self._file, "data", h5py.Group)
            self.demos = self._demos(data, filter_keys)
            first = _member(data, self.demos[0], h5py.Group)
            arrays = list(_arrays(first, MAX_DEPTH))
        if "actions" not in arrays:
            raise ValueError(f"{path}: data/{self.demos[0]} has no actions, it has {arrays}")
        self.names = sorted([*arrays, ENDS])
        self._headers: dict[str, tuple[Header, list[int]]] = {}

    def listed(self, filter_key: str) -> np.ndarray:
        """Whether each of `demos` is listed under mask/<filter_key>: (E,). Raises ValueError for no such list."""
        return np.isin(self.demos, list(_mask(self._file, filter_key)))

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        if ABOUT not in self._file:
            return {}
        array, where = _member(self._file, ABOUT, h5py.Dataset), f"{self.path}: {ABOUT}"
        _check_layout(array, where)
        if array.dtype != np.uint8 or array.chunks is not None or array.size > MAX_ABOUT:
            return {}  # somebody else's
        with suppress(ValueError, RecursionError):
            about = json.loads(array[...].tobytes())
            return about if isinstance(about, dict) else {}
        return {}

    def _demos(self, data: Any, filter_keys: tuple[str, ...]) -> list[str]:
        if not 0 < len(data) <= MAX_DEMOS:
            raise ValueError(f"{self.path} has {len(data):,} demonstrations, expected 1 to {MAX_DEMOS:,}")
        wanted = set().union(*(_mask(self._file, key) for key in filter_keys)) if filter_keys else set(data)
        if missing := sorted(wanted - set(data)):
            raise ValueError(f"{self.path}: mask/ lists {missing[0]!r}, which is not under data/")
        if not wanted:
            raise ValueError(f"{self.path}: mask/{' and mask/'.join(filter_keys)} list no demonstration")
        return sorted(wanted, key=self._number)

    def _number(self, demo: str) -> int:
        named = re.fullmatch(r"demo_(\d{1,9})", demo)
        if named is None:
            raise ValueError(f"{self.path} has data/{demo[:60]}, expected data/demo_<number>")
        return int(named[1])

    def open(self, name: str) -> Header:
        if name not in self._headers:
            with _reading(self.path / name):
                self._headers[name] = self._measure(name)
        return self._headers[name][0]

    def _measure(self, name: str) -> tuple[Header, list[int]]:
        """Shape and type of all demonstrations together, and the length of each."""
        if name == ENDS:
            return Header((len(self.demos),), np.dtype(np.int64)), []
        shapes, dtypes, stored = [], set(), 0
        for demo in self.demos:
            array = self._array(demo, name)
            shapes.append(array.shape)
            dtypes.add(array.dtype)
            stored += array.id.get_storage_size()
        if len({shape[1:] for shape in shapes}) > 1 or len(dtypes) > 1 or not all(shapes):
            raise ValueError(f"{self.path}: {name} differs between demonstrations: {sorted(set(shapes))[:3]}")
        lengths = [shape[0] for shape in shapes]
        header = Header((sum(lengths), *shapes[0][1:]), dtypes.pop())
        check_ratio(self.path / name, header, min(stored, self.path.stat().st_size))
        if self._action is not None and name == "actions":
            one = self._action(np.zeros((1, *shapes[0][1:]), np.float32))
            header = Header((sum(lengths), *one.shape[1:]), one.dtype)
        return header, lengths

    def _array(self, demo: str, name: str) -> Any:
        node, where = _member(self._file, "data", h5py.Group), f"data/{demo}/{name}"
        for part in (demo, *name.split("/")[:-1]):
            node = _member(node, part, h5py.Group)
        array = _member(node, name.rpartition("/")[2], h5py.Dataset)
        _check_layout(array, f"{self.path}: {where}")
        return array

    def read(self, name: str) -> np.ndarray:
        header = self.open(name)
        if header.nbytes > MEMORY_BYTES:
            raise ValueError(f"{self.path / name} holds {header.nbytes / 1e9:.0f} GB, more than this machine's memory")
        if name == ENDS:
            self.open("actions")
            return np.cumsum(self._headers["actions"][1], dtype=np.int64)
        values = np.empty(header.shape, header.dtype)
        for rows, block in self.blocks(name):
            values[rows] = block
        return values

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        header, start = self.open(name), 0
        if name == ENDS:
            yield slice(0, header.shape[0]), self.read(name)
            return
        for demo in self.demos:
            with _reading(f"{self.path}: data/{demo}/{name}"):
                array = self._array(demo, name)
                _check_chunks(array, f"{self.path}: data/{demo}/{name}")
            for first in range(0, array.shape[0], header.block_rows):
                values = self._values(array, slice(first, first + header.block_rows), name)
                yield slice(start + first, start + first + len(values)), values
            start += array.shape[0]

    def _values(self, array: Any, rows: slice, name: str) -> np.ndarray:
        with _reading(f"{self.path}: {array.name}"):
            values = array[rows]
        return self._action(values) if self._action is not None and name == "actions" else values

    def fingerprint(self, name: str) -> str:
        described = [str(self.path.resolve()), name, file_stats(self.path), self.demos]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]

    def observed(self, name: str) -> bool:
        return name.startswith("obs/")

    def plain(self, name: str) -> str:
        return "action" if name == "actions" else name.removeprefix("obs/").replace("/", ".")

    def find(self, key: str) -> str | None:
        if key == "action" and "action" not in self.names:
            return "actions"
        return f"obs/{key}" if f"obs/{key}" in self.names else super().find(key)  # next_obs/<key> ends with it, too


@contextmanager
def _reading(what: object) -> Iterator[None]:
    """Turns what HDF5 raises into a ValueError, and limits the memory that it takes."""
    with limited(what):
        try:
            yield
        except (OSError, RuntimeError, KeyError, zlib.error) as error:
            raise ValueError(f"{what} cannot be read: {first_line(error)}") from error


def _member(group: Any, name: str, kind: type) -> Any:
    """The group or array `name` in this very file. Raises ValueError for anything else, links to other files above
    all."""
    where = f"{group.file.filename}: {group.name.rstrip('/')}/{name}"
    link = group.get(name, getlink=True)
    if link is None:
        raise ValueError(f"{where} is missing: expected robomimic's layout, data/demo_<number>/actions")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{where} is a link, which may lead to any file: store the data themselves")
    member = group[name]
    if not isinstance(member, kind):
        raise ValueError(f"{where} is {type(member).__name__}, expected {kind.__name__}")
    return member


def _arrays(group: Any, depth: int, prefix: str = "") -> Iterator[str]:
    """Names of the arrays of numbers below `group`. Raises ValueError for more than a demonstration has."""
    if depth == 0 or len(group) > MAX_ARRAYS:
        raise ValueError(f"{group.file.filename}: {group.name[:100]} has too many members, or members within members")
    for name in group:
        member = _member(group, name, object)
        if isinstance(member, h5py.Group):
            yield from _arrays(member, depth - 1, f"{prefix}{name}/")
        elif isinstance(member, h5py.Dataset) and member.dtype.kind in "biuf" and member.ndim > 0:
            yield f"{prefix}{name}"


def _mask(file: Any, filter_key: str) -> frozenset[str]:
    """Names of the demonstrations that mask/<filter_key> lists."""
    masks = _member(file, "mask", h5py.Group) if "mask" in file else {}
    if filter_key not in masks:
        known = ", ".join(sorted(masks)[:20]) or "none"
        raise ValueError(f"filter_key={filter_key}, but {file.filename} has these lists of demonstrations: {known}")
    array = _member(masks, filter_key, h5py.Dataset)
    where = f"{file.filename}: mask/{filter_key}"
    text = h5py.check_string_dtype(array.dtype)
    if array.ndim != 1 or array.shape[0] > MAX_DEMOS or text is None:
        raise ValueError(f"{where} is {array.dtype} {array.shape}, expected names of demonstrations")
    _check_layout(array, where)
    _check_chunks(array, where)
    names = array[:].tolist()
    return frozenset(name.decode(errors="replace") for name in names)


def _check_layout(array: Any, where: str) -> None:
    """Raises ValueError for values that lie in other files, or whose filters have no bound, from metadata alone."""
    plist = array.id.get_create_plist()
    if plist.get_external_count() or array.is_virtual:
        raise ValueError(f"{where} keeps its values in other files, expected them in this one")
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if unknown := [number for number in filters if number not in FILTERS]:
        raise ValueError(f"{where} is packed with filter {unknown[0]}, which may unpack to anything. {REPACK}")
    if filters not in ([], [1], [2], [3], [2, 1], [1, 3], [2, 1, 3], [2, 3]):
        names = [FILTERS[number] for number in filters]
        raise ValueError(f"{where} is packed with {names}, expected shuffle, gzip, fletcher32, each once. {REPACK}")
    declared, stored = array.size * array.dtype.itemsize, array.id.get_storage_size()
    if array.chunks is None and stored != declared:
        raise ValueError(f"{where} declares {declared:,} bytes for shape {array.shape}, but the file holds {stored:,}")
    if array.chunks is not None and (chunk := _chunk_bytes(array)) > MAX_CHUNK_BYTES:
        raise ValueError(f"{where} declares chunks of {chunk:,} bytes, expected at most {MAX_CHUNK_BYTES:,}")


def _chunk_bytes(array: Any) -> int:
    return int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize


def _check_chunks(array: Any, where: str) -> None:
    """Raises ValueError for a chunk that unpacks to more than is declared. HDF5 would give it any memory."""
    if array.chunks is None:
        return
    packed, limit = array.compression == "gzip", _chunk_bytes(array) + SLACK

    def check(chunk: Any) -> None:
        if chunk.size > 2 * limit + (1 << 16):
            raise ValueError(f"{where}: a chunk has {chunk.size:,} bytes, but {limit - SLACK:,} are declared")
        if packed:
            skipped, data = array.id.read_direct_chunk(chunk.chunk_offset)
            if not skipped and COMPRESSORS["zlib"](memoryview(data), limit) > limit:
                raise ValueError(f"{where}: a chunk unpacks to more than the {limit - SLACK:,} bytes that are declared")

    array.id.chunk_iter(check)

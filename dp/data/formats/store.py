"""What every file format gives: named arrays with one row per frame, and the ends of the episodes."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

ENDS = "episode_ends"
"""Name of the ends, int64 (E,), in formats that do not store them as an array."""

MAX_RATIO = 500
"""Decoded bytes for each stored one. zlib reaches 1,030, for zeros; recordings reach 50."""

FREE_BYTES = 256 << 20
"""Arrays up to this size may be stored in next to nothing, for example as one constant."""

MAX_FPS = 1000
"""Most control steps per second."""

BLOCK_BYTES = 16 << 20
"""Decoded bytes that one block of `Store.blocks` holds, at least one row."""


@dataclass(frozen=True)
class Header:
    """Shape and type of an array that has not been read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def block_rows(self) -> int:
        """Rows of a block."""
        return max(1, BLOCK_BYTES * self.shape[0] // max(1, self.nbytes))


class Store(ABC):
    """Arrays by name, episodes end to end. A subclass reads one file format.

    `path` is a folder or a file, `names` are the arrays, sorted. Opening reads metadata alone.
    """

    choice: ClassVar[str]
    """What reads it: dataset=<choice>."""

    separator: ClassVar[str] = "/"
    """Character before the last part of a name."""

    path: Path
    names: list[str]

    @property
    def attributes(self) -> Mapping[str, Any]:
        """What the data set says of itself besides its arrays, in JSON's types."""
        return {}

    @property
    def tasks(self) -> Sequence[str]:
        """What the demonstrations show, in words, by the values of an array `task_index`; empty if it does not say."""
        texts = self.attributes.get("tasks")
        return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else ()

    @property
    def fps(self) -> float | None:
        """Control steps per second; None if the data set does not say."""
        fps = self.attributes.get("fps")
        return float(fps) if isinstance(fps, int | float) and 0 < fps <= MAX_FPS else None

    @abstractmethod
    def open(self, name: str) -> Any:
        """Something with the `shape`, `dtype` and `ndim` of an array. Raises ValueError for unusable metadata."""

    @abstractmethod
    def read(self, name: str) -> np.ndarray:
        """The whole array. Raises ValueError if memory cannot hold it, or for damage."""

    @abstractmethod
    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields (rows, values), all rows in order. Raises as `read` does."""

    @abstractmethod
    def fingerprint(self, name: str) -> str:
        """A text that changes when the files of the array do."""

    def observed(self, name: str) -> bool:
        """Whether the array may be an observation of a policy."""
        return True

    def plain(self, name: str) -> str | None:
        """The name of an array in any format, without what its place in this one adds. None for an array that follows
        from others."""
        plain = name.rpartition("data/")[2].removeprefix("observation.").replace("/", ".")
        return "action" if plain == "actions" else plain

    def check_complete(self, name: str) -> None:  # noqa: B027  # most formats know no holes
        """Raises ValueError if values of the array were lost in a way that reads as zeros."""

    def remark(self, name: str) -> str:
        """What people should know about how the array is stored; empty, or it begins with a semicolon."""
        return ""

    def find(self, key: str) -> str | None:
        """The name that `key` stands for: itself, or the one name of which it is the end. None if there is none."""
        if key in self.names:
            return key
        ending = [name for name in self.names if name.endswith(f"{self.separator}{key}")]
        return ending[0] if len(ending) == 1 else None

    def last(self, name: str) -> str:
        """The last part of a name."""
        return name.rpartition(self.separator)[2]

    def summary(self) -> str:
        """Every array with its shape and type, for error messages."""
        return ", ".join(f"{name} {self.open(name).shape} {self.open(name).dtype}" for name in self.names)


def file_stats(path: Path) -> list[list[Any]]:
    """Name, size and time of a file, or of every file below a folder."""
    if path.is_file():
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns]]
    files = []
    for entry in sorted(path.rglob("*")):
        if entry.is_file():
            files.append([entry.relative_to(path).as_posix(), entry.stat().st_size, entry.stat().st_mtime_ns])
    return files


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line."""
    return (str(error).strip() or repr(error)).splitlines()[0][:200]


def check_ordinary(file: Path, max_bytes: int | None = None) -> int:
    """The size of an ordinary file. Raises ValueError for anything else: reading a pipe would wait for ever."""
    if not file.exists():
        raise ValueError(f"{file} is missing")
    if not file.is_file():
        raise ValueError(f"{file} is not an ordinary file")
    size = os.stat(file).st_size
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"{file} has {size:,} bytes, expected at most {max_bytes:,}")
    return size


def check_ratio(what: object, header: Header, stored: int, max_ratio: int = MAX_RATIO) -> None:
    """Raises ValueError for an array that declares more than `stored` bytes can hold."""
    if header.nbytes > FREE_BYTES and header.nbytes > max_ratio * stored:
        raise ValueError(
            f"{what} declares {header.nbytes:,} bytes for shape {header.shape}, but its files hold {stored:,}: "
            "no recording compresses that well"
        )

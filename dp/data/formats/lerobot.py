"""LeRobotDataset v3.0 (Hugging Face), read with pyarrow and PyAV.

    meta/info.json: features, fps, where files lie     meta/episodes/chunk-*/file-*.parquet: a row per episode
    data/chunk-*/file-*.parquet: a row per frame       videos/<feature>/chunk-*/file-*.mp4: several episodes each

https://huggingface.co/docs/lerobot/lerobot-dataset-v3
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dp.data.cache import MEMORY_BYTES
from dp.data.formats import png, video
from dp.data.formats.memory import limited
from dp.data.formats.parquet import ParquetFile
from dp.data.formats.store import ENDS, MAX_RATIO, Header, Store, check_ordinary, check_ratio, file_stats

INFO, TASKS = "meta/info.json", "meta/tasks.parquet"

VERSION = "v3.0"

PICTURES, VIDEO = "image", "video"
"""What info.json calls the types of pictures in parquet and of videos."""

MAX_INFO_BYTES, MAX_FEATURES, MAX_SIDE = 16 << 20, 1000, 1 << 16

MAX_FILES = 1 << 17
"""Most files of a kind."""

MAX_VIDEO_RATIO = 20_000
"""Decoded bytes for each one of a video in which little moves."""

COUNTERS = ("timestamp", "frame_index", "episode_index", "index")
"""Features that follow from the episodes' lengths and the frame rate."""

TYPES = frozenset(
    ("float16", "float32", "float64", "bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
)
"""Types of features that are numbers."""


@dataclass(frozen=True)
class Feature:
    """A feature as info.json declares it. kind: `PICTURES`, `VIDEO` or a type of number. shape: (Y, X, 3) of images."""

    kind: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8 if self.kind in (PICTURES, VIDEO) else self.kind)


@dataclass(frozen=True)
class Part:
    """Consecutive frames of an array that lie in one file, `n_rows` from frame `first` of the file on."""

    file: Path
    first: int
    n_rows: int


class LeRobotStore(Store):
    """The features of the data set in the folder `path`, and its episode ends.

    Raises ValueError if there is no data set of this version, or its metadata contradict each other.
    """

    choice = "lerobot"
    separator = "."

    def __init__(self, path: Path) -> None:
        self.path = path
        self._info = _read_info(path / INFO)
        self._fps = _positive(self._info, "fps", path / INFO)
        self.features = _features(self._info.get("features"), path / INFO)
        self.names = sorted([*self.features, ENDS])
        self._metadata = [ParquetFile(file) for file in _files_below(path / "meta/episodes")]
        lengths = self._of_episodes("length", np.int64)
        if not len(lengths) or lengths.min() < 1 or lengths.max() > 1 << 40:
            raise ValueError(f"{path}/meta/episodes has lengths that no episodes have, expected 1 or more frames each")
        if not np.array_equal(self._of_episodes("episode_index", np.int64), np.arange(len(lengths))):
            raise ValueError(f"{path}/meta/episodes: episode_index does not count the episodes from 0")
        self._ends = np.cumsum(lengths)
        self._checked: set[str] = set()
        self._ordered = False

    def open(self, name: str) -> Header:
        if name == ENDS:
            return Header(self._ends.shape, self._ends.dtype)
        feature = self.features[name]
        header = Header((int(self._ends[-1]), *feature.shape), feature.dtype)
        if name not in self._checked:
            parts = self._video_parts(name) if feature.kind == VIDEO else self._data_parts
            stored = sum(check_ordinary(file) for file in {part.file for part in parts})
            ratio = MAX_VIDEO_RATIO if feature.kind == VIDEO else MAX_RATIO
            check_ratio(f"{self.path}: {name}", header, stored, ratio)
            self._checked.add(name)
        return header

    def read(self, name: str) -> np.ndarray:
        header = self.open(name)
        if header.nbytes > MEMORY_BYTES:
            raise ValueError(f"{self.path}: {name} holds {header.nbytes / 1e9:.0f} GB, more than this machine's memory")
        values = np.empty(header.shape, header.dtype)
        for rows, block in self.blocks(name):
            values[rows] = block
        return values

    def blocks(self, name: str) -> Iterator[tuple[slice, np.ndarray]]:
        if name == ENDS:
            yield slice(0, len(self._ends)), self._ends
            return
        self._check_order()
        start, header = 0, self.open(name)
        for values in self._values(name, header):
            yield slice(start, start + len(values)), values
            start += len(values)
        if start != header.shape[0]:
            raise ValueError(f"{self.path}: {name} has {start:,} frames, but the episodes have {header.shape[0]:,}")

    def _check_order(self) -> None:
        """Raises ValueError, once, unless the files hold the frames of each episode in their order."""
        if self._ordered or "frame_index" not in self.features:
            return
        self._ordered = True
        start, counted = 0, np.arange(self._ends[-1]) - np.repeat(*self._starts())
        for values in self._values("frame_index", self.open("frame_index")):
            expected = counted[start : start + len(values)]
            if not np.array_equal(values.reshape(-1), expected):
                raise ValueError(f"{self.path}: frame_index does not count the frames of each episode from 0, in order")
            start += len(values)

    def _starts(self) -> tuple[np.ndarray, np.ndarray]:
        """First frame and number of frames of each episode."""
        lengths = np.diff(self._ends, prepend=0)
        return self._ends - lengths, lengths

    def _values(self, name: str, header: Header) -> Iterator[np.ndarray]:
        kind = self.features[name].kind
        if kind == VIDEO:
            yield from self._filmed(name, header)
            return
        for part in self._data_parts:
            file = ParquetFile(part.file)
            if file.n_rows != part.n_rows:
                raise ValueError(f"{part.file} has {file.n_rows:,} frames, but its episodes have {part.n_rows:,}")
            if kind == PICTURES:
                yield from _pictures(file, name, header)
            else:
                yield from file.numbers(name, header.dtype, header.shape[1:], header.block_rows)

    def _filmed(self, name: str, header: Header) -> Iterator[np.ndarray]:
        """Decodes every video once, in order. Frames between episodes are left out."""
        height, width, _ = header.shape[1:]
        decoded: Iterator[tuple[int, np.ndarray]] = iter(())
        file, number = None, -1
        for part in self._video_parts(name):
            if part.file != file:
                file, number = part.file, -1
                decoded = video.frames(file, height, width, self.fps, name)
            wanted = part.first
            for start in range(0, part.n_rows, header.block_rows):
                block = np.empty((min(header.block_rows, part.n_rows - start), *header.shape[1:]), header.dtype)
                for row in range(len(block)):
                    while number < wanted:
                        number, image = next(decoded, (wanted + 1, None))
                    if number != wanted or image is None:
                        raise ValueError(f"{file} has no frame {wanted}, but its episodes need it")
                    block[row] = image
                    wanted += 1
                yield block

    @cached_property
    def _data_parts(self) -> list[Part]:
        """The files of frames, in order."""
        chunk, number = (self._of_episodes(f"data/{which}_index", np.int64) for which in ("chunk", "file"))
        parts: list[Part] = []
        for place, length in zip(zip(chunk.tolist(), number.tolist(), strict=True), self._lengths, strict=True):
            file = self._file("data_path", *place)
            if parts and parts[-1].file == file:
                parts[-1] = Part(file, 0, parts[-1].n_rows + length)
            else:
                parts.append(Part(file, 0, length))
        if len({part.file for part in parts}) < len(parts) or len(parts) > MAX_FILES:
            raise ValueError(f"{self.path}/meta/episodes: episodes do not lie in the data files in their order")
        return parts

    def _video_parts(self, name: str) -> list[Part]:
        """Where the frames of each episode lie in the videos, in order."""
        place = f"videos/{name}"
        chunk, number = (self._of_episodes(f"{place}/{which}_index", np.int64) for which in ("chunk", "file"))
        start = self._of_episodes(f"{place}/from_timestamp", np.float64) * self.fps
        if not np.isfinite(start).all() or (start < 0).any() or (start > 1 << 40).any():
            raise ValueError(f"{self.path}/meta/episodes: {place}/from_timestamp holds times that no video has")
        files = [self._file("video_path", *where, name) for where in zip(chunk.tolist(), number.tolist(), strict=True)]
        parts = [Part(*place) for place in zip(files, np.rint(start).astype(int).tolist(), self._lengths, strict=True)]
        for one, other in itertools.pairwise(parts):
            if one.file == other.file and other.first < one.first + one.n_rows:
                raise ValueError(f"{self.path}/meta/episodes: episodes overlap in {one.file}")
        return parts

    @property
    def _lengths(self) -> list[int]:
        return np.diff(self._ends, prepend=0).tolist()

    def _of_episodes(self, column: str, dtype: Any) -> np.ndarray:
        """A number of each episode."""
        parts = [part for file in self._metadata for part in file.numbers(column, np.dtype(dtype), (1,), 1 << 16)]
        return np.concatenate(parts)[:, 0] if parts else np.empty(0, dtype)

    def _file(self, template: str, chunk_index: int, file_index: int, video_key: str = "") -> Path:
        """The file that a template of info.json names. It lies below `path`."""
        pattern = self._info.get(template)
        values: dict[str, int | str] = {"chunk_index": chunk_index, "file_index": file_index, "video_key": video_key}
        where = f"{self.path / INFO}: {template}={str(pattern)[:100]!r}"
        if not isinstance(pattern, str):
            raise ValueError(f"{where}, expected a pattern of file names")
        name = _expand(pattern, values)
        if name is None or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ValueError(
                f"{where}, expected a path in this folder, with {{chunk_index:03d}} and {{file_index:03d}}"
            )
        return self.path / name

    def fingerprint(self, name: str) -> str:
        described = [str(self.path.resolve()), name, file_stats(self.path)]
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]

    def observed(self, name: str) -> bool:
        return name.startswith("observation.")

    def plain(self, name: str) -> str | None:
        follows = name in COUNTERS or (name == "task_index" and len(self.tasks) < 2)
        return None if follows else name.removeprefix("observation.")

    @property
    def fps(self) -> float:
        return self._fps

    @cached_property
    def tasks(self) -> Sequence[str]:
        """Texts of meta/tasks.parquet, in the order of their numbers."""
        file = ParquetFile(self.path / TASKS)
        texts = [name for name in file.columns if name != "task_index"]
        if not texts:
            raise ValueError(f"{self.path / TASKS} has no column of texts next to task_index")
        return file.texts(texts[0])


def _read_info(file: Path) -> Mapping[str, Any]:
    check_ordinary(file, MAX_INFO_BYTES)
    try:
        info = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{file} has codebase_version={str(version)[:20]!r}, expected {VERSION!r}. Convert the data set with "
            "LeRobot: python -m lerobot.datasets.v30.convert_dataset_v21_to_v30 --repo-id=ID"
        )
    return info


def _positive(info: Mapping[str, Any], key: str, file: Path) -> float:
    value = info.get(key)
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value < 1e6:
        raise ValueError(f"{file} has {key}={str(value)[:20]}, expected a positive number")
    return float(value)


def _features(declared: Any, file: Path) -> dict[str, Feature]:
    """Features that hold numbers or pictures. Raises ValueError for shapes that are none."""
    if not isinstance(declared, dict) or not 0 < len(declared) <= MAX_FEATURES:
        raise ValueError(f"{file} has no features, expected names with their dtype and shape")
    features = {}
    for name, entry in declared.items():
        entry = entry if isinstance(entry, dict) else {}
        kind, shape = entry.get("dtype"), entry.get("shape", ())
        sound = isinstance(shape, list) and len(shape) <= 4 and all(type(n) is int and 0 < n <= MAX_SIDE for n in shape)
        if not sound or not isinstance(kind, str) or not name.isprintable() or name == ENDS or "/" in name:
            raise ValueError(f"{file}: the feature {name[:60]!r} has dtype {str(kind)[:20]}, shape {str(shape)[:60]}")
        if kind in (PICTURES, VIDEO):
            features[name] = Feature(kind, _picture_shape(tuple(shape), entry.get("names"), f"{file}: {name[:60]}"))
        elif kind in TYPES:
            features[name] = Feature(kind, tuple(shape) or (1,))
    return features


def _picture_shape(shape: tuple[int, ...], names: Any, where: str) -> tuple[int, ...]:
    """(Y, X, 3), whichever order is declared: files hold pictures."""
    first = isinstance(names, list) and names[:1] in (["channels"], ["channel"])
    if len(shape) != 3 or 3 not in (shape[0], shape[2]):
        raise ValueError(f"{where} has shape {list(shape)}, expected pictures with three channels")
    return (*shape[1:], 3) if first or shape[2] != 3 else shape


def _expand(pattern: str, values: Mapping[str, int | str]) -> str | None:
    """`pattern` with its fields filled in; None if it has others. `str.format` would follow attributes and allocate."""
    field = re.compile(r"\{(chunk_index|file_index|video_key)(?::0([1-9])d)?\}")
    if re.search(r"[{}]", field.sub("", pattern)) or len(pattern) > 1000:
        return None
    return field.sub(lambda match: str(values[match[1]]).zfill(int(match[2] or 0)), pattern)


def _files_below(folder: Path) -> list[Path]:
    files = sorted(folder.glob("chunk-*/file-*.parquet"))
    if not files or len(files) > MAX_FILES:
        raise ValueError(f"{folder} has {len(files) or 'no'} parquet files, expected chunk-000/file-000.parquet")
    return files


def _pictures(file: ParquetFile, name: str, header: Header) -> Iterator[np.ndarray]:
    """Decodes a column of PNG files."""
    start = 0
    for column in file.batches(name, header.block_rows):
        fields = [column.type.field(i).name for i in range(column.type.num_fields)]
        if "bytes" not in fields:
            raise ValueError(f"{file.path}: {name} holds {str(column.type)[:100]}, expected pictures as bytes")
        block = np.empty((len(column), *header.shape[1:]), header.dtype)
        with limited(file.path, block.nbytes):
            for row, content in enumerate(column.field("bytes")):
                try:
                    png.decode(content.as_py() or b"", block[row])
                except ValueError as error:
                    raise ValueError(f"{file.path}: {name}, row {start + row}: {error}") from error
        start += len(block)
        yield block

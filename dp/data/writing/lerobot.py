"""Episodes as a LeRobotDataset v3.0, see `dp.data.formats.lerobot`. Pictures are PNG files in parquet, without loss."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dp.data.episodes import Episodes
from dp.data.formats import png
from dp.data.formats.lerobot import PICTURES, VERSION
from dp.data.formats.parquet import MAX_TEXTS
from dp.data.summary import is_image
from dp.data.writing import statistics
from dp.data.writing.batches import batches, rows_of
from dp.data.writing.hdf5 import OF_THE_DEMO
from dp.files import write_atomically, write_json

FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"

CHUNK_FILES = 1000
"""Files in a folder."""

UNNAMED_TASK = "unknown"

COUNTERS = {"timestamp": "float32", **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")}
"""Features that every data set of LeRobot's has."""


def write_lerobot(
    episodes: Episodes, folder: Path, fps: float, tasks: Sequence[str], step: Callable[[int], object]
) -> Path:
    """Writes the files that `folder` lacks, metadata last. Returns `folder`.

    Args:
        fps: control steps per second.
        tasks: texts by the values of an array "task_index". Empty: numbers.
        step: called with the number of frames that have been written in addition.

    Raises ValueError for an array "task_index" of something else.
    """
    episodes = Episodes({_feature(name): array for name, array in episodes.arrays.items()}, episodes.episode_ends)
    task_index, texts = _tasks(episodes, tasks)
    shards = list(batches(episodes))
    for number, numbers in enumerate(shards):
        rows = rows_of(episodes, numbers)
        file = folder / "data" / _name(number)
        if not file.exists():
            _write(file, _frames(episodes, numbers, rows, fps, task_index))
        step(len(rows))
    _write_metadata(episodes, shards, folder, fps, task_index, texts)
    return folder


def _write(file: Path, table: pa.Table) -> None:
    """Writes a file of frames. A dictionary would not make pictures smaller, and their statistics help nobody."""
    small = [field.name for field in table.schema if not pa.types.is_struct(field.type)]
    write_atomically(file, lambda stream: pq.write_table(table, stream, use_dictionary=small, write_statistics=small))


def _feature(name: str) -> str:
    own = name in ("action", "task_index", *OF_THE_DEMO) or name.startswith(("next.", "next_obs."))
    return name if own else f"observation.{name}"


def _tasks(episodes: Episodes, texts: Sequence[str]) -> tuple[np.ndarray, Sequence[str]]:
    """The task of each frame (N,), and the texts of all tasks. Tasks without texts are numbered."""
    index = episodes.arrays.get("task_index")
    if index is None:
        return np.zeros(len(episodes), np.int64), texts[:1] or [UNNAMED_TASK]
    index = index.reshape(-1)
    if index.dtype != np.int64 or index.min() < 0 or index.max() >= MAX_TEXTS:
        raise ValueError(
            f"task_index is {index.dtype} from {index.min()} to {index.max()}, expected int64 from 0 to {MAX_TEXTS}: "
            "rename the array"
        )
    n_tasks = max(2, int(index.max()) + 1)
    return index, texts if len(texts) >= n_tasks else [f"task {number}" for number in range(n_tasks)]


def _name(number: int) -> str:
    return FILE.format(chunk_index=number // CHUNK_FILES, file_index=number % CHUNK_FILES)


def _features(episodes: Episodes) -> dict[str, Any]:
    """The features as info.json declares them."""
    features: dict[str, Any] = {}
    for name, array in episodes.arrays.items():
        shape, picture = list(array.shape[1:] or (1,)), is_image(array)
        names = ["height", "width", "channel"] if picture else None
        features[name] = {"dtype": PICTURES if picture else array.dtype.name, "shape": shape, "names": names}
    counters = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in COUNTERS.items()}
    return {**features, **counters}


def _frames(episodes: Episodes, numbers: range, rows: range, fps: float, task_index: np.ndarray) -> pa.Table:
    """A row per frame of consecutive episodes."""
    within = slice(rows.start, rows.stop)
    columns = {name: _column(array[within]) for name, array in episodes.arrays.items() if name != "task_index"}
    lengths = np.diff(episodes.episode_ends, prepend=0)[numbers.start : numbers.stop]
    frame = np.concatenate([np.arange(length) for length in lengths])
    columns |= {
        "timestamp": pa.array((frame / fps).astype(np.float32)),
        "frame_index": pa.array(frame),
        "episode_index": pa.array(np.repeat(np.arange(numbers.start, numbers.stop), lengths)),
        "index": pa.array(np.arange(rows.start, rows.stop)),
        "task_index": pa.array(task_index[within]),
    }
    table = pa.table(columns)
    return table.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": _schema(episodes)}})})


def _column(array: np.ndarray) -> pa.Array:
    if is_image(array):
        files = [{"bytes": png.encode(image), "path": f"frame-{t:06d}.png"} for t, image in enumerate(array)]
        return pa.array(files, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    shape = array.shape[1:] if array.shape[1:] != (1,) else ()
    for size in reversed(shape):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def _schema(episodes: Episodes) -> dict[str, Any]:
    """The types of the columns for the `datasets` library."""
    types = {name: _type(array) for name, array in episodes.arrays.items()}
    return types | {name: {"dtype": dtype, "_type": "Value"} for name, dtype in COUNTERS.items()}


def _type(array: np.ndarray) -> dict[str, Any]:
    shape, value = array.shape[1:], {"dtype": array.dtype.name, "_type": "Value"}
    if is_image(array):
        return {"_type": "Image"}
    if shape in ((), (1,)):
        return value
    if len(shape) == 1:
        return {"feature": value, "length": shape[0], "_type": "List"}
    return {"shape": list(shape), "dtype": array.dtype.name, "_type": f"Array{len(shape)}D"}


def _write_metadata(
    episodes: Episodes, shards: Sequence[range], folder: Path, fps: float, task_index: np.ndarray, texts: Sequence[str]
) -> None:
    per_episode, of_all = _statistics(episodes, fps, task_index)
    rows = _episode_rows(episodes, shards, task_index, texts)
    for row, found in zip(rows, per_episode, strict=True):
        row |= {f"stats/{name}/{key}": value.tolist() for name, one in found.items() for key, value in one.items()}
    table = pa.Table.from_pylist(rows)
    write_atomically(folder / "meta/episodes" / _name(0), lambda stream: pq.write_table(table, stream))
    write_json(folder / "meta/stats.json", {n: {k: v.tolist() for k, v in one.items()} for n, one in of_all.items()})
    write_atomically(folder / "meta/tasks.parquet", lambda stream: pq.write_table(_task_table(texts), stream))
    write_json(folder / "meta/info.json", _info(episodes, fps, len(texts)))


def _episode_rows(
    episodes: Episodes, shards: Sequence[range], task_index: np.ndarray, texts: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for number, shard in enumerate(shards):
        for episode in shard:
            start, end = int(episodes.episode_starts[episode]), int(episodes.episode_ends[episode])
            place = {"chunk_index": number // CHUNK_FILES, "file_index": number % CHUNK_FILES}
            rows.append({
                "episode_index": episode,
                "tasks": [texts[n] for n in np.unique(task_index[start:end])],
                "length": end - start,
                **{f"data/{key}": value for key, value in place.items()},
                "dataset_from_index": start,
                "dataset_to_index": end,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
            })  # fmt: skip
    return rows


def _statistics(
    episodes: Episodes, fps: float, task_index: np.ndarray
) -> tuple[list[dict[str, statistics.Statistics]], dict[str, statistics.Statistics]]:
    """Of each episode, and of all together."""
    numbers = {name: array for name, array in episodes.arrays.items() if not is_image(array) and name != "task_index"}
    lengths = np.diff(episodes.episode_ends, prepend=0)
    frame = np.concatenate([np.arange(length) for length in lengths])
    numbers |= {
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.repeat(np.arange(len(lengths)), lengths),
        "index": np.arange(len(frame)),
        "task_index": task_index,
    }
    numbers = {name: array if array.ndim > 1 else array[:, None] for name, array in numbers.items()}
    pictures = {name: array for name, array in episodes.arrays.items() if is_image(array)}
    total = {name: np.zeros((3, 256), np.int64) for name in pictures}
    per_episode = []
    for start, end in zip(episodes.episode_starts.tolist(), episodes.episode_ends.tolist(), strict=True):
        found = {name: statistics.of_numbers(array[start:end]) for name, array in numbers.items()}
        for name, array in pictures.items():
            counts = statistics.histogram(array[start:end])
            total[name] += counts
            found[name] = statistics.of_images(counts, end - start)
        per_episode.append(found)
    of_all = {name: statistics.of_numbers(array) for name, array in numbers.items()}
    return per_episode, of_all | {name: statistics.of_images(counts, len(episodes)) for name, counts in total.items()}


def _task_table(texts: Sequence[str]) -> pa.Table:
    """The number of each text, as pandas writes a frame whose index are the texts."""
    about = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [{"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object",
                            "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64",
             "metadata": None},
            {"name": None, "field_name": "__index_level_0__", "pandas_type": "unicode", "numpy_type": "object",
             "metadata": None},
        ],
        "pandas_version": "2.2.0",
    }  # fmt: skip
    table = pa.table({"task_index": pa.array(range(len(texts)), pa.int64()), "__index_level_0__": list(texts)})
    return table.replace_schema_metadata({b"pandas": json.dumps(about)})


def _info(episodes: Episodes, fps: float, n_tasks: int) -> dict[str, Any]:
    return {
        "codebase_version": VERSION,
        "robot_type": "unknown",
        "total_episodes": episodes.n_episodes,
        "total_frames": len(episodes),
        "total_tasks": n_tasks,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": int(fps) if fps.is_integer() else fps,
        "splits": {"train": f"0:{episodes.n_episodes}"},
        "data_path": f"data/{FILE}",
        "video_path": None,
        "features": _features(episodes),
    }

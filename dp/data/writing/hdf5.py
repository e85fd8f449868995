"""Episodes as an HDF5 file in robomimic's layout, see `dp.data.formats.hdf5`."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from dp.data.episodes import Episodes
from dp.data.formats.hdf5 import ABOUT
from dp.data.writing.batches import batches, rows_of

OF_THE_DEMO = ("rewards", "dones", "states")
"""Arrays that robomimic stores next to the actions. Others are observations."""


def write_hdf5(
    episodes: Episodes, file: Path, fps: float | None, tasks: Sequence[str], step: Callable[[int], object]
) -> Path:
    """Writes `file`, after one file for each batch of episodes: HDF5 does not survive being killed. Returns `file`.

    fps, tasks: see `dp.data.formats.store.Store`.
    step: called with the number of frames that have been written in addition.
    """
    parts = []
    for numbers in batches(episodes):
        part = file.with_name(f"{numbers[0]:06d}.hdf5")
        if not part.exists():
            _write_part(part, episodes, numbers)
        parts.append(part)
        step(len(rows_of(episodes, numbers)))
    _join(file, parts, len(episodes), json.dumps({"fps": fps, "tasks": [*tasks]}))
    return file


def _write_part(part: Path, episodes: Episodes, numbers: range) -> None:
    with _whole(part) as file:
        for number in numbers:
            demo = file.create_group(f"data/demo_{number}")
            episode = episodes.episode(number)
            demo.attrs["num_samples"] = len(next(iter(episode.values())))
            for name, values in episode.items():
                _write_array(demo, _place(name), values)


def _write_array(demo: h5py.Group, place: str, values: np.ndarray) -> None:
    if values.ndim < 4:
        demo.create_dataset(place, data=values)
    else:
        demo.create_dataset(place, data=values, chunks=(1, *values.shape[1:]), compression="gzip", compression_opts=4)


def _place(name: str) -> str:
    if name == "action":
        return "actions"
    return name.replace(".", "/") if name in OF_THE_DEMO or name.startswith("next_obs.") else f"obs/{name}"


@contextmanager
def _whole(path: Path) -> Iterator[h5py.File]:
    """A new file, which gets its name when it is closed. h5py wants a path: it cannot write to a stream alone."""
    temporary = path.with_name(f".{path.name}.tmp")
    with h5py.File(temporary, "w") as file:
        yield file
    temporary.replace(path)


def _join(path: Path, parts: list[Path], n_frames: int, about: str) -> None:
    with _whole(path) as file:
        data = file.create_group("data")
        data.attrs["total"] = n_frames
        file.create_dataset(ABOUT, data=np.frombuffer(about.encode(), np.uint8))
        for part in parts:
            with h5py.File(part, "r") as one:
                for name in one["data"]:
                    one.copy(f"data/{name}", data)

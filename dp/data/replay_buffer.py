"""A zarr store of demonstrations, read into memory once and checked."""

import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from tqdm import tqdm

from dp.data.recording import read_settings
from dp.files import wait_for_lock
from dp.processes import N_CORES, in_processes
from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.demonstration import FACTS
from dp.tasks.pusht.env import IMAGE_SIZE
from dp.tasks.pusht.pictures import PACKING, Recorded, pack_episode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayBuffer:
    """Episodes end to end.

    `arrays` maps a name to (N, ...): "img" is uint8 (N, Y, X, 3) RGB, everything else float32 in the store's units.
    `episode_ends` int64 (E,): one past the last frame of each episode, as in the reference implementation.
    `seeds` int64 (E,): what the episodes follow from; the official demonstrations' are their numbers.
    `initial_states` (E, 5): what the environment was reset to, see `pusht.initial_state_for`.
    """

    arrays: dict[str, np.ndarray]
    episode_ends: np.ndarray
    seeds: np.ndarray
    initial_states: np.ndarray

    @classmethod
    def load(cls, path: Path, names: Sequence[str], cache_dir: Path | None = None) -> "ReplayBuffer":
        """Reads the arrays `names` from the zarr v2 store at `path`.

        A store without "img" gets its images rendered. Decoded and rendered images are kept in `cache_dir` (default:
        $DP_CACHE or ~/.cache/dp), which makes the next start fast. "noise" is 0 where a store has none.

        Of a store that is being collected, or whose collection was killed, the complete episodes are read.

        Raises ValueError for a store that lacks an array, is corrupt or incomplete, or is inconsistent; the message
        names the file and what to do.
        """
        if not path.is_dir():
            raise ValueError(f"no data set at {path}: give dataset.path=PATH or set DP_PUSHT_ZARR")
        episode_ends = _read_array(path, "meta/episode_ends").astype(np.int64)
        collected = read_settings(path) is not None
        if collected and not len(episode_ends):
            raise ValueError(f"{path} holds no episode yet: python run.py workspace=collect fills it")
        _validate_ends(path, episode_ends)
        n_frames = int(episode_ends[-1]) if collected else None
        facts = {name: values[: len(episode_ends)] for name, values in read_facts(path).items()}
        seeds = facts.get("seed", np.arange(len(episode_ends)))
        arrays: dict[str, np.ndarray] = {}
        for name in names:
            if name == "img" and not (path / "data/img").is_dir():
                recorded = cls.load(path, ["state", "action", "noise"])
                arrays[name] = _render_images(recorded, cache_dir or default_cache_dir())
            elif name == "img":
                arrays[name] = _read_images(path, "data/img", cache_dir or default_cache_dir())
            elif name == "noise" and not (path / "data/noise").is_dir():
                arrays[name] = np.zeros((episode_ends[-1], 2), np.float32)
            else:
                arrays[name] = _read_array(path, f"data/{name}").astype(np.float32)[:n_frames]
        _validate(path, arrays, episode_ends)
        initial_states = facts["initial_state"] if "initial_state" in facts else _of_seeds(seeds)
        return cls(arrays, episode_ends, seeds, initial_states)

    @classmethod
    def join(cls, buffers: Sequence["ReplayBuffer"]) -> "ReplayBuffer":
        """The episodes of all of them, one buffer after the other. They hold arrays of the same names."""
        if len(buffers) == 1:
            return buffers[0]  # its images may lie in a file, and may stay there
        offsets = np.cumsum([0, *(len(buffer) for buffer in buffers[:-1])])
        return cls(
            {name: np.concatenate([buffer.arrays[name] for buffer in buffers]) for name in buffers[0].arrays},
            np.concatenate([buffer.episode_ends + offset for buffer, offset in zip(buffers, offsets, strict=True)]),
            np.concatenate([buffer.seeds for buffer in buffers]),
            np.concatenate([buffer.initial_states for buffer in buffers]),
        )

    def __len__(self) -> int:
        return int(self.episode_ends[-1])

    @property
    def from_seed(self) -> np.ndarray:
        """Whether each episode starts from the initial state that its seed has in the reference environment: (E,)."""
        return (self.initial_states == _of_seeds(self.seeds)).all(1)

    def executed(self, number: int) -> Recorded:
        """What runs an episode once more: initial state (5,), states (T, 5), executed actions (T, 2). Needs "noise"."""
        episode = self.episode(number)
        return self.initial_states[number], episode["state"], episode["action"] + episode["noise"]

    def episode(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of one episode."""
        rows = slice(self.episode_starts[number], self.episode_ends[number])
        return {name: array[rows] for name, array in self.arrays.items()}

    @property
    def n_episodes(self) -> int:
        return len(self.episode_ends)

    def sha256(self, *names: str) -> str:
        """Of the arrays `names`, all if none is named, and the ends: equal however the demonstrations are stored."""
        digest = hashlib.sha256(self.episode_ends.tobytes())
        for name in sorted(names or self.arrays):
            digest.update(name.encode() + np.ascontiguousarray(self.arrays[name]).tobytes())
        return digest.hexdigest()

    @property
    def episode_starts(self) -> np.ndarray:
        return np.concatenate([[0], self.episode_ends[:-1]])


def read_facts(path: Path) -> dict[str, np.ndarray]:
    """What a collected store says of each episode (`store.FACTS`). Others say nothing."""
    names = [name for name in FACTS if (path / "meta" / name).is_dir()]
    return {name: _read_array(path, f"meta/{name}") for name in names}


def _of_seeds(seeds: np.ndarray) -> np.ndarray:
    return np.stack([pusht.initial_state(seed) for seed in seeds.tolist()])


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


def _chunk_files(path: Path, name: str, array: zarr.Array) -> list[tuple[slice, Path]]:
    """(rows, file) of every chunk. Raises ValueError for a missing one, which zarr would fill with zeros, silently."""
    n_rows, size = array.shape[0], array.chunks[0]
    chunks = []
    for number, start in enumerate(range(0, n_rows, size)):
        file = path / name / ".".join([str(number)] + ["0"] * (array.ndim - 1))
        if not file.is_file():
            raise ValueError(f"chunk {file} is missing. {_fix(path)}")
        chunks.append((slice(start, min(start + size, n_rows)), file))
    return chunks


def _chunk_rows(path: Path, name: str, array: zarr.Array) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields (rows, values) chunk by chunk. Raises ValueError naming the file of one that cannot be read."""
    for rows, file in _chunk_files(path, name, array):
        try:
            values = np.asarray(array[rows])
        except Exception as error:
            raise ValueError(f"chunk {file} is corrupt ({error}). {_fix(path)}") from error
        yield rows, values


def _fix(path: Path) -> str:
    collected = (path / "meta" / "seed").is_dir()
    again = "collect it again (workspace=collect)" if collected else "run again to download it afresh"
    return f"Delete {path} and {again}, or point dataset.path at an intact copy."


def _read_array(path: Path, name: str) -> np.ndarray:
    array = _open(path, name)
    _chunk_files(path, name, array)
    try:
        return np.asarray(array[:])  # zarr reads in a thread of its own: waiting for it once is not waiting 161 times
    except Exception:  # of some chunk: which?
        return np.concatenate([values for _, values in _chunk_rows(path, name, array)])


def _read_images(path: Path, name: str, cache_dir: Path) -> np.ndarray:
    """Images as uint8, a quarter of the store's float32, from the cache where it has them."""
    array = _open(path, name)

    def decode(images: np.ndarray) -> None:
        for rows, values in _chunk_rows(path, name, array):
            with np.errstate(invalid="ignore"):
                images[rows] = values
            if not np.array_equal(images[rows], values):
                bad = values[images[rows] != values][0]
                where = f"{path / name} holds {bad} in frames {rows.start}-{rows.stop}"
                raise ValueError(f"{where}, expected integers 0..255. {_fix(path)}")

    return _cached(cache_dir / f"{_fingerprint(path / name)}.npy", array.shape, decode)


def _render_images(recorded: ReplayBuffer, cache_dir: Path) -> np.ndarray:
    """What the environment showed, from the cache where it has it."""

    def render(images: np.ndarray) -> None:
        made = in_processes(pack_episode, map(recorded.executed, range(recorded.n_episodes)), N_CORES)
        with tqdm(total=len(images), desc="rendering images, once", unit="frame", disable=None) as bar:
            for start, end, (_, packed) in zip(recorded.episode_starts, recorded.episode_ends, made, strict=True):
                PACKING.decode(packed, images[start:end])
                bar.update(end - start)

    drawn_with = importlib.metadata.version("pygame")
    starts = recorded.initial_states.tolist()
    digest = hashlib.sha256(f"{recorded.sha256()} {starts} {drawn_with}".encode()).hexdigest()
    return _cached(cache_dir / f"rendered-{digest[:24]}.npy", (len(recorded), IMAGE_SIZE, IMAGE_SIZE, 3), render)


def _cached(file: Path, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]) -> np.ndarray:
    """The bytes that `fill` writes into an array of this shape: from `file`, where an earlier call has left them.

    Of several processes that want them one fills the file, and the others wait for it.
    """
    images = _read_cache(file)
    if images is not None:
        return images
    try:
        turn = wait_for_lock(file.with_name(f".{file.stem}.lock"))
    except OSError as error:
        return _uncached(shape, fill, error)
    with turn:
        images = _read_cache(file)
        if images is not None:
            return images
        temporary = file.with_suffix(".tmp")  # a process that was killed may have left it
        try:
            images = _on_disk(temporary, shape)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            return _uncached(shape, fill, error)
        try:
            fill(images)
            images.flush()
            temporary.replace(file)
        except BaseException:
            temporary.unlink()
            raise
    return np.load(file, mmap_mode="c")


def _read_cache(file: Path) -> np.ndarray | None:
    try:
        return np.load(file, mmap_mode="c")  # read as it is needed, and shared by all processes
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever numpy's parsers raise on damage
        log.warning("ignoring the unreadable cache %s: %s", file, error)
    return None


def _uncached(shape: tuple[int, ...], fill: Callable[[np.ndarray], None], error: OSError) -> np.ndarray:
    log.warning("images are not cached, the next start will be slow too: %s", error)
    images = np.empty(shape, np.uint8)
    fill(images)
    return images


def _on_disk(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """An array that is a file. Raises OSError where the disk has no room for it; filling it cannot fail any more."""
    images = np.lib.format.open_memmap(file, "w+", np.uint8, shape)
    with file.open("r+b") as stream:
        os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    return images


def _fingerprint(array_path: Path) -> str:
    """Changes when any file of the array does."""
    files = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in sorted(array_path.iterdir())]
    return hashlib.sha256(json.dumps([str(array_path.resolve()), files]).encode()).hexdigest()[:24]


def _validate_ends(path: Path, episode_ends: np.ndarray) -> None:
    if episode_ends.ndim != 1 or len(episode_ends) == 0:
        raise ValueError(f"{path}/meta/episode_ends has shape {episode_ends.shape}, expected (E,), E > 0. {_fix(path)}")
    if not (np.diff(episode_ends, prepend=0) > 0).all():
        at = int(np.flatnonzero(np.diff(episode_ends, prepend=0) <= 0)[0])
        raise ValueError(f"{path}/meta/episode_ends must increase, but does not at episode {at}. {_fix(path)}")


def _validate(path: Path, arrays: dict[str, np.ndarray], episode_ends: np.ndarray) -> None:
    for name, array in arrays.items():
        if len(array) != episode_ends[-1]:
            end = episode_ends[-1]
            raise ValueError(
                f"{path}/data/{name} has {len(array)} frames, but the last episode ends at {end}. {_fix(path)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            at = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))[0])
            raise ValueError(f"{path}/data/{name} is not finite at frame {at}. {_fix(path)}")

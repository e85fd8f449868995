"""A store of PushT demonstrations: the official one, a collected one, or somebody's own in the same layout."""

import hashlib
import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dp.data.cache import Frames, load_images
from dp.data.episodes import Episodes, join_ends
from dp.data.formats.zarr import ZarrStore
from dp.data.images import stored_frames
from dp.data.opening import check_choice
from dp.data.reading import Mismatch, check_ends, find, find_ends, numeric, read_low_dim
from dp.data.recording import read_settings
from dp.modalities import Spec
from dp.processes import N_CORES, in_processes
from dp.progress import Progress
from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.demonstration import FACTS, FRAMES
from dp.tasks.pusht.env import IMAGE_SIZE
from dp.tasks.pusht.pictures import PACKING, Recorded, pack_episode
from dp.tasks.pusht.sources import DEFAULT_PATH

log = logging.getLogger(__name__)

IMAGE = Spec("rgb", (3, IMAGE_SIZE, IMAGE_SIZE), "image")
IMAGE_KEY = "task.shape_meta.obs.image"

SHAPES = {name: shape for name, (_, shape) in FRAMES.items()}
"""Shape of one frame by array."""

START_TOLERANCE_PX = 1e-2


@dataclass(frozen=True)
class ReplayBuffer(Episodes):
    """PushT episodes: "img" uint8 (N, 96, 96, 3), "state" (N, 5), "action" (N, 2), "noise" (N, 2), "n_contacts" (N, 1).

    `seeds` int64 (E,): what the episodes follow from; without a record, their numbers.
    `initial_states` (E, 5): what the environment was reset to, see `pusht.initial_state_for`; without a record, what it
    is reset to for the seed.
    """

    seeds: np.ndarray
    initial_states: np.ndarray

    @classmethod
    def load(
        cls,
        path: Path | Sequence[Path],
        names: Sequence[str],
        cache_dir: Path | None = None,
        image: Spec = IMAGE,
        render: bool | None = None,
    ) -> "ReplayBuffer":
        """Reads the arrays `names` from a zarr store, or from several, whose episodes are joined.

        A collected store has no pictures: its "img" is rendered. So is that of another store without pictures, with a
        warning, if `render` says so. Decoded and rendered images are kept in `cache_dir`, see `dp.data.cache`. "noise"
        is 0 if a store has none. `image.key` names the array of "img" if it has another name. Of a store that is being
        collected, the complete episodes are read.

        Raises:
            Mismatch: if a store lacks an array or has one of another shape.
            ValueError: if a store is damaged or inconsistent; the message names the file and what to do.
        """
        stores = [_Store(one, bool(render)) for one in ([path] if isinstance(path, Path) else path)]
        for store in stores:
            store.check(names, image)
        arrays: dict[str, np.ndarray] = {}
        for name in names:
            if name == "img":
                arrays[name] = load_images([store.frames(image) for store in stores], cache_dir)
            else:
                parts = [store.read(name) for store in stores]
                arrays[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return cls(
            arrays,
            join_ends([store.episode_ends for store in stores]),
            np.concatenate([store.seeds for store in stores]),
            np.concatenate([store.initial_states for store in stores]),
        )

    @property
    def from_seed(self) -> np.ndarray:
        """Whether each episode starts where the reference environment does with its seed: (E,). Needs "state"."""
        recorded = (self.initial_states == _of_seeds(self.seeds)).all(1)
        away = np.abs(self.arrays["state"][self.episode_starts, :2] - self.initial_states[:, :2])
        return recorded & (away.max(1) < START_TOLERANCE_PX)  # nothing moves the agent when the environment is reset

    def executed(self, number: int) -> Recorded:
        """All that runs an episode again: initial state (5,), states (T, 5), executed actions (T, 2). Needs "noise"."""
        episode = self.episode(number)
        return self.initial_states[number], episode["state"], episode["action"] + episode["noise"]


def read_facts(path: Path) -> dict[str, np.ndarray]:
    """Facts of each episode of a collected store (`demonstration.FACTS`). Other stores may use these names
    differently."""
    return _Store(path).facts


class _Store:
    """One store, opened: its ends and facts are read, its large arrays are not."""

    def __init__(self, path: Path, render: bool = False) -> None:
        if not path.exists():
            raise ValueError(f"no data set at {path}: give dataset.path=PATH or set DP_PUSHT_ZARR")
        self.path, self.collected, self.render = path, read_settings(path) is not None, render
        check_choice(path, "zarr")
        self.zarr = ZarrStore(path, advice=_advice(path, self.collected))
        downloaded = path.resolve() == DEFAULT_PATH.resolve()
        self.zarr.complete = self.collected or downloaded or _looks_official(self.zarr)
        self.episode_ends = self._read_ends()
        self.n_frames = int(self.episode_ends[-1])
        self.facts = self._read_facts() if self.collected else {}
        self.seeds = self.facts.get("seed", np.arange(len(self.episode_ends)))
        self.initial_states = self.facts["initial_state"] if "initial_state" in self.facts else _of_seeds(self.seeds)

    def _read_ends(self) -> np.ndarray:
        if not self.collected:
            action = self._find("action")
            assert action is not None
            return find_ends(self.zarr, self.zarr.open(action).shape[0])
        ends = self.zarr.read("meta/episode_ends").astype(np.int64)
        if not ends.size:
            raise ValueError(f"{self.path} holds no episode yet: python run.py workspace=collect fills it")
        check_ends(self.path / "meta/episode_ends", ends)
        return ends

    def _read_facts(self) -> dict[str, np.ndarray]:
        stored = [name for name in FACTS if f"meta/{name}" in self.zarr.names]
        n_episodes, facts = len(self.episode_ends), {}
        for name in stored:
            shape, expected = self.zarr.open(f"meta/{name}").shape, FACTS[name][1]
            if shape[:1] < (n_episodes,) or shape[1:] != expected:
                raise ValueError(
                    f"{self.path}/meta/{name} has shape {shape}, expected {(n_episodes, *expected)}: a row per episode"
                )
            facts[name] = self.zarr.read(f"meta/{name}")[:n_episodes]
        return facts

    def check(self, names: Sequence[str], image: Spec) -> None:
        """Raises Mismatch, from metadata alone, if `read` or `frames` would not find what they need."""
        for name in names:
            found = self._image(image) if name == "img" else self._find(name)
            if found and not self.collected and self.zarr.open(found).shape[0] != self.n_frames:
                n, end = self.zarr.open(found).shape[0], self.n_frames
                raise ValueError(f"{self.path / found} has {n} frames, but the last episode ends at {end}")

    def _find(self, name: str) -> str | None:
        found = self.zarr.find(f"data/{name}") or self.zarr.find(name)
        if found is None and name == "noise":
            return None
        array = None if found is None else self.zarr.open(found)
        if array is None or array.shape[1:] != SHAPES[name] or not numeric(array):
            held = f"has no array {name!r}"
            if array is not None:
                held = f"{found} holds {array.dtype} {array.shape[1:]} per frame"
            raise Mismatch(
                f"{self.path}: {held}, but PushT's {name} is {SHAPES[name]}. The store has {self.zarr.summary()}: is "
                f"it PushT's? workspace=inspect dataset.path={self.path} prints how to train on other data"
            )
        return found

    def read(self, name: str) -> np.ndarray:
        found = self._find(name)
        if found is None:
            return np.zeros((self.n_frames, 2), np.float32)
        return read_low_dim(self.zarr, found, Spec("low_dim", SHAPES[name], name), self.n_frames)

    def _image(self, image: Spec) -> str | None:
        """The array of pictures; None if there are none, so that they are rendered."""
        if image.key != IMAGE.key:
            return find(self.zarr, image, IMAGE_KEY)
        if self.zarr.find("data/img") is not None:
            return find(self.zarr, replace(image, key="data/img"), IMAGE_KEY)
        pictures = [name for name in self.zarr.names if self._is_picture(name)]
        if pictures:
            raise Mismatch(
                f"{self.path} has no data/img, but {', '.join(pictures)}: set {IMAGE_KEY}.key={pictures[0]} to train "
                "on these pictures"
            )
        if image.shape != IMAGE.shape:
            raise Mismatch(
                f"{self.path} has no pictures, and those rendered from its states are {list(IMAGE.shape)}, but "
                f"{IMAGE_KEY} declares {list(image.shape)}: set {IMAGE_KEY}.shape={list(IMAGE.shape)}"
            )
        if not self.collected and not self.render:
            raise Mismatch(
                f"{self.path} has no pictures, but {IMAGE_KEY} is declared: use a store with pictures, or set "
                "dataset.render=true to train on pictures that PushT's simulator draws from the recorded states"
            )
        return None

    def _is_picture(self, name: str) -> bool:
        shape = self.zarr.open(name).shape
        return len(shape) == 4 and shape[0] == self.n_frames

    def frames(self, image: Spec) -> Frames:
        found = self._image(image)
        if found is not None:
            return stored_frames(self.zarr, found, image.shape, self.n_frames)
        if not self.collected:
            log.warning("WARNING: %s has no pictures: they are drawn from its states (dataset.render=true)", self.path)
        return _rendered(ReplayBuffer.load(self.path, ["state", "action", "noise"]))


def _rendered(recorded: ReplayBuffer) -> Frames:
    """The images of recorded episodes, to be rendered."""

    def render(images: np.ndarray) -> None:
        made = in_processes(pack_episode, map(recorded.executed, range(recorded.n_episodes)), N_CORES)
        with Progress(total=len(images), desc="rendering images, once", unit="frame") as bar:
            for start, end, (_, packed) in zip(recorded.episode_starts, recorded.episode_ends, made, strict=True):
                images[start:end] = PACKING.decode(packed, np.empty((end - start, *images.shape[1:]), np.uint8))
                bar.update(end - start)

    drawn_with = importlib.metadata.version("pygame")
    starts = recorded.initial_states.tolist()
    digest = hashlib.sha256(f"{recorded.sha256()} {starts} {drawn_with}".encode()).hexdigest()
    return Frames(f"rendered-{digest[:24]}", (len(recorded), IMAGE_SIZE, IMAGE_SIZE, 3), render)


def _of_seeds(seeds: np.ndarray) -> np.ndarray:
    return np.stack([pusht.initial_state(seed) for seed in seeds.tolist()])


def _looks_official(store: ZarrStore) -> bool:
    """Whether the store has the official set's numbers of episodes and frames: its writer left no chunk out."""
    shapes = {name: store.open(name).shape for name in ("meta/episode_ends", "data/state") if name in store.names}
    return shapes == {"meta/episode_ends": (206,), "data/state": (25_650, 5)}


def _advice(path: Path, collected: bool) -> str:
    """Advice for a damaged store. It suggests deleting only what can be made or downloaded again."""
    if collected:
        return f"Point dataset.path at an intact copy, or delete {path} and collect it again (workspace=collect)"
    if path.resolve() == DEFAULT_PATH.resolve():
        return f"Delete {path} and run again to download it again, or point dataset.path at an intact copy"
    return "Point dataset.path at an intact copy"

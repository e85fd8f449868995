"""Finds what `shape_meta` declares in a store, compares the two, and only then reads `Episodes`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dp.data.cache import load_images
from dp.data.episodes import Episodes, join_ends
from dp.data.formats.store import Store
from dp.data.images import channels_first, stored_frames
from dp.data.recording import read_settings
from dp.modalities import Spec
from dp.tasks.demonstration import EXECUTED

SEED = "meta/seed"

CONTINUE = ("dp.rollouts.takeover.Takeover",)
"""Collectors whose demonstrations begin where somebody else's episode has come to."""


class Mismatch(ValueError):
    """A store does not hold what `shape_meta` declares."""


@dataclass(frozen=True)
class Found:
    """A store, which of its arrays each entry of `shape_meta` comes from, and its episode ends."""

    store: Store
    names: Mapping[str, str]
    episode_ends: np.ndarray


def read(
    stores: Sequence[Store],
    specs: Mapping[str, Spec],
    episode_ends: str | None = None,
    cache_dir: Path | None = None,
) -> Episodes:
    """The episodes of all stores, one store after the other. The arrays are named as `specs` names them.

    specs: observations by name, and "action". episode_ends: the array of episode ends; None: found by `find_ends`.
    Collected stores may lie among others: there, arrays that a `key` does not find have the names of observations.

    Raises:
        Mismatch: if a store lacks an array, or holds another shape or type than is declared. It is raised before
            anything large is read.
        ValueError: for a damaged store, values that are not finite, and unusable ends.
    """
    found = [compare(store, specs, episode_ends) for store in stores]
    arrays = {}
    for name, spec in specs.items():
        if spec.type == "rgb":
            frames = [stored_frames(one.store, one.names[name], spec.shape) for one in found]
            arrays[name] = load_images(frames, cache_dir)
        else:
            parts = [read_low_dim(one.store, one.names[name], spec) for one in found]
            arrays[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Episodes(arrays, join_ends([one.episode_ends for one in found]))


def compare(store: Store, specs: Mapping[str, Spec], episode_ends: str | None) -> Found:
    """Raises what `read` raises, from metadata and the episode ends alone."""
    if collected := read_settings(store.path) is not None:  # named as the task names them, not as the user's own data
        specs = {n: s if store.find(s.key) is not None else replace(s, key=n) for n, s in specs.items()}
    names = {name: find(store, spec, key_of(name)) for name, spec in specs.items()}
    lengths = {array: store.open(array).shape[0] for array in names.values()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{store.path}: arrays have different numbers of frames: {lengths}, expected equal ones")
    n_frames = next(iter(lengths.values()))
    return Found(store, names, find_ends(store, n_frames, None if collected else episode_ends))


def start_seeds(stores: Sequence[Store], specs: Mapping[str, Spec], episode_ends: str | None) -> np.ndarray:
    """Seed from whose initial state each episode of all stores begins, int64 (E,); -1 where no seed is known.

    Only collections know seeds, and there a takeover begins in the middle of an episode.
    """
    return np.concatenate([_seeds(compare(store, specs, episode_ends)) for store in stores])


def _seeds(found: Found) -> np.ndarray:
    settings, n = read_settings(found.store.path), len(found.episode_ends)
    name = found.store.find(SEED) if settings is not None else None
    if name is None or found.store.open(name).dtype.kind not in "iu" or found.store.open(name).ndim != 1:
        return np.full(n, -1)
    begins = settings is not None and settings.get("collector._target_") not in CONTINUE
    seeds = found.store.read(name)[:n].astype(np.int64)
    return seeds if begins and len(seeds) == n else np.full(n, -1)


def executed_actions(store: Store, action: Spec) -> np.ndarray:
    """The actions of a collection as they were executed, float32 (N, Da). Where the store does not say, they are those
    recorded."""
    name = store.find(f"data/{EXECUTED}") or compare(store, {"action": action}, None).names["action"]
    return read_low_dim(store, name, action)


def key_of(name: str) -> str:
    """The key of a `shape_meta` entry, as a user types it."""
    return "task.shape_meta.action" if name == "action" else f"task.shape_meta.obs.{name}"


def find(store: Store, spec: Spec, key: str) -> str:
    """The name of the array that `spec` describes. `key`: of the entry, for messages. Raises Mismatch."""
    name = store.find(spec.key)
    if name is None:
        raise Mismatch(
            f"{store.path} has no array {spec.key!r}, it has {store.summary()}: set {key}.key to one of these. "
            f"workspace=inspect dataset.path={store.path} prints a shape_meta that fits"
        )
    array = store.open(name)
    shape, declared = array.shape[1:], f"{key} declares {spec.type} {list(spec.shape)}"
    held = f"{store.path}: {name} holds {array.dtype} {shape} per frame"
    if not numeric(array):
        raise Mismatch(f"{held}, but {declared}: expected numbers, set {key}.key to another array")
    if spec.type == "rgb":
        try:
            channels_first(shape, spec.shape)
        except ValueError as error:
            raise Mismatch(f"{held}, but {declared} ({error}): {_image_advice(shape, key)}") from None
    elif (shape or (1,)) != spec.shape:
        raise Mismatch(f"{held}, but {declared}: set {key}.shape={list(shape or (1,))}, or use other data")
    return name


def numeric(array: Any) -> bool:
    """Whether the array holds real numbers, one row per frame."""
    return array.ndim > 0 and array.dtype.kind in "fiub"


def _image_advice(shape: tuple[int, ...], key: str) -> str:
    fitting = [
        [3, *sizes] for sizes, channels in ((shape[:-1], shape[-1:]), (shape[1:], shape[:1])) if channels == (3,)
    ]
    if len(shape) != 3 or not fitting:
        return "expected three channels, first or last, so convert the images"
    return f"set {key}.shape={fitting[0]}, or use images of the declared size"


def find_ends(store: Store, n_frames: int, name: str | None = None) -> np.ndarray:
    """Episode ends, int64 (E,), from the array that `name_of_ends` finds. Raises ValueError if they cannot be ends."""
    return _ends(store, name_of_ends(store, n_frames, name), n_frames)


def name_of_ends(store: Store, n_frames: int, name: str | None = None) -> str:
    """The array of episode ends: `name`, or the one array that can be nothing else.

    It is the array called episode_ends, or else the one-dimensional integer array that increases strictly and ends at
    `n_frames`. Raises ValueError if there is none, or several.
    """
    if name is not None:
        found = store.find(name)
        if found is None:
            raise ValueError(f"dataset.episode_ends={name}, but {store.path} has {store.summary()}")
        return found
    named = [one for one in store.names if one.rpartition("/")[2] == "episode_ends"]
    if len(named) == 1:
        return named[0]
    flat = [one for one in store.names if store.open(one).ndim == 1 and store.open(one).dtype.kind in "iu"]
    shorter = [one for one in flat if 0 < store.open(one).shape[0] < n_frames]
    fitting = [one for one in shorter if _are_ends(store.read(one), n_frames)]
    if len(fitting) != 1:
        raise ValueError(
            f"{store.path} has {len(fitting) or 'no'} arrays{f' {fitting}' if fitting else ''} that may be episode "
            f"ends, of the integer arrays {flat}: expected one that increases and ends at {n_frames}, the number of "
            "frames. Set dataset.episode_ends=KEY"
        )
    return fitting[0]


def _are_ends(values: np.ndarray, n_frames: int) -> bool:
    return bool((np.diff(values.astype(np.int64), prepend=0) > 0).all()) and int(values[-1]) == n_frames


def _ends(store: Store, name: str, n_frames: int) -> np.ndarray:
    store.check_complete(name)  # ends are never 0
    ends = store.read(name)
    check_ends(store.path / name, ends, n_frames)
    if ends[-1] != n_frames:
        raise ValueError(
            f"{store.path} has {n_frames} frames, but the last episode of {name} ends at {ends[-1]}"
            f"{_taken_for(ends, n_frames)}"
        )
    return ends.astype(np.int64)


def check_ends(name: Path, ends: np.ndarray, n_frames: int | None = None) -> None:
    """Raises ValueError unless `ends` can be episode ends. `name`: where they come from. `n_frames`: for advice."""
    if ends.ndim != 1 or len(ends) == 0 or ends.dtype.kind not in "iu":
        raise ValueError(f"{name} has shape {ends.shape} and type {ends.dtype}, expected integers of shape (E,), E > 0")
    increases = np.diff(ends.astype(np.int64), prepend=0) > 0
    if not increases.all():
        at = int(np.flatnonzero(~increases)[0])
        raise ValueError(f"{name} must increase, but does not at episode {at}{_taken_for(ends, n_frames)}")


def _taken_for(ends: np.ndarray, n_frames: int | None) -> str:
    """A sentence about what else `ends` are, if that is clear."""
    if ends[0] == 0 and (np.diff(ends) > 0).all():
        return ". These are the first frames of the episodes: store one past the last frame of each"
    if ends.sum() == n_frames:
        return ". These are the lengths of the episodes: store their cumulative sum"
    if n_frames is not None and ends[-1] == n_frames - 1:
        return ". These are the last frames of the episodes: store them plus one"
    return ""


def read_low_dim(store: Store, name: str, spec: Spec, n_frames: int | None = None) -> np.ndarray:
    """The first `n_frames` (default: all) of an array of numbers, float32 (N, *shape). Raises ValueError for NaN."""
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, which is refused
        array = store.read(name)[:n_frames].astype(np.float32).reshape(-1, *spec.shape)
    finite = np.isfinite(array).reshape(len(array), -1).all(1)
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"{store.path / name} is not finite at frame {at}, as float32: repair or remove this episode")
    return array

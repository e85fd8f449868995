"""Demonstrations from files that anybody wrote: one function per format, and one way through all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from dp.data.demonstrations import Demonstrations, check_sha256
from dp.data.formats import NAMES, choice_of, missing, open_store
from dp.data.formats.store import Store
from dp.data.reading import Mismatch, read, start_seeds
from dp.data.rotations import to_rotation_6d
from dp.data.windows import Split, limit_episodes, split_episodes
from dp.limits import Positive, Seed
from dp.modalities import Spec

Ratio = Annotated[float, Interval(ge=0, lt=1)]


def open_zarr(
    obs: Mapping[str, Spec],
    action: Spec,
    path: str | Sequence[str] | None,
    sha256: str | None = None,
    val_ratio: Ratio = 0.02,
    max_train_episodes: Positive | None = None,
    split_seed: Seed = 42,
    episode_ends: str | None = None,
) -> Demonstrations:
    """Demonstrations in replay buffers that anybody wrote, see `dp.data.reading.read`.

    Args:
        path: a zarr store (format 2 or 3, a folder or a .zip), or several, whose episodes are joined.
        sha256: the digest that the data must have, or None for any.
        val_ratio, max_train_episodes, split_seed: see `split_episodes`.
        episode_ends: the array of episode ends; None finds it.

    Raises:
        ValueError: if there are no data, or they are damaged, not as declared, or not those of `sha256`.
    """
    stores = [open_store(one) for one in check_paths(path, "zarr")]
    split = partial(split_episodes, val_ratio=val_ratio, max_train_episodes=max_train_episodes, seed=split_seed)
    return _read(stores, obs, action, sha256, split, episode_ends=episode_ends)


def open_lerobot(
    obs: Mapping[str, Spec],
    action: Spec,
    path: str | Sequence[str] | None,
    sha256: str | None = None,
    val_ratio: Ratio = 0.02,
    max_train_episodes: Positive | None = None,
    split_seed: Seed = 42,
    names: Mapping[str, str] | None = None,
) -> Demonstrations:
    """Demonstrations in LeRobot data sets, version 3.0.

    Args:
        path: a folder with meta/info.json, or several, whose episodes are joined.
        names: observation -> feature, for observations that have other names: {agent_pos: observation.state}.
        sha256, val_ratio, max_train_episodes, split_seed: see `open_zarr`.

    Raises:
        ValueError: as `open_zarr` does.
    """
    stores = [open_store(one) for one in check_paths(path, "lerobot")]
    split = partial(split_episodes, val_ratio=val_ratio, max_train_episodes=max_train_episodes, seed=split_seed)
    return _read(stores, obs, action, sha256, split, names)


def open_robomimic(
    obs: Mapping[str, Spec],
    action: Spec,
    path: str | Sequence[str] | None,
    sha256: str | None = None,
    val_ratio: Ratio = 0.02,
    max_train_episodes: Positive | None = None,
    split_seed: Seed = 42,
    names: Mapping[str, str] | None = None,
    filter_key: str | None = None,
    val_filter_key: str | None = None,
    rotation: Literal["6d"] | None = None,
) -> Demonstrations:
    """Demonstrations in HDF5 files of robomimic's.

    Args:
        path: a file, or several, whose episodes are joined.
        names: observation -> array, for observations that have other names: {eef: obs/robot0_eef_pos}.
        filter_key: list under mask/ of the demonstrations to read ("train", "20_percent"); None: all.
        val_filter_key: list of those to validate on ("valid"), instead of a share `val_ratio` of them.
        rotation: "6d" turns axis-angle rotations of the actions into six numbers (`to_rotation_6d`). None: actions
            stay as they are stored, absolute or not.
        sha256, val_ratio, max_train_episodes, split_seed: see `open_zarr`.

    Raises:
        ValueError: as `open_zarr` does, and for a list that a file does not have.
    """
    paths = check_paths(path, "robomimic")
    try:
        from dp.data.formats.hdf5 import Hdf5Store
    except ModuleNotFoundError as error:
        raise missing("robomimic", error) from error
    keys = tuple(key for key in (filter_key, val_filter_key) if key is not None) if filter_key is not None else ()
    stores = [Hdf5Store(one, keys, to_rotation_6d if rotation == "6d" else None) for one in paths]
    if val_filter_key is None:
        split: Callable[[int], Split] = partial(
            split_episodes, val_ratio=val_ratio, max_train_episodes=max_train_episodes, seed=split_seed
        )
    else:
        val = np.concatenate([store.listed(val_filter_key) for store in stores])
        train = ~val if filter_key is None else np.concatenate([store.listed(filter_key) for store in stores]) & ~val
        if not train.any():
            raise ValueError(f"val_filter_key={val_filter_key} leaves no demonstration to train on")
        listed = Split(limit_episodes(np.flatnonzero(train), max_train_episodes, split_seed), np.flatnonzero(val))
        split = partial(_as_listed, listed)
    return _read(stores, obs, action, sha256, split, names)


def _as_listed(split: Split, n_episodes: int) -> Split:
    return split


def _read(
    stores: Sequence[Store],
    obs: Mapping[str, Spec],
    action: Spec,
    sha256: str | None,
    split: Callable[[int], Split],
    names: Mapping[str, str] | None = None,
    episode_ends: str | None = None,
) -> Demonstrations:
    """The demonstrations of all stores, whatever their format."""
    specs = _rename({**obs, "action": action}, names or {})
    episodes = read(stores, specs, episode_ends)
    paths = [store.path for store in stores]
    digest = episodes.sha256(*(name for name, spec in specs.items() if spec.type == "low_dim"))
    check_sha256(sha256, digest, paths)
    seeds = start_seeds(stores, specs, episode_ends)
    return Demonstrations(episodes, obs, action, split(episodes.n_episodes), paths, digest, seeds=seeds)


def _rename(specs: Mapping[str, Spec], names: Mapping[str, str]) -> dict[str, Spec]:
    """The entries with the arrays that `names` says. Raises ValueError for an entry that does not exist."""
    for name in names:
        if name not in specs:
            raise ValueError(f"names.{name}: the task has no such observation, expected some of {', '.join(specs)}")
    return {name: replace(spec, key=names.get(name, spec.key)) for name, spec in specs.items()}


def check_paths(path: str | Sequence[str] | None, choice: str | None = None) -> list[Path]:
    """The stores that `path` names.

    Raises ValueError unless they are there, and different, and Mismatch for a format that dataset=`choice` does not
    read.
    """
    given = [path] if path is None or isinstance(path, str) else list(path)
    paths = [Path(str(one)).expanduser() for one in given if one is not None]
    if not paths or len({one.resolve() for one in paths}) < len(given):
        shown = "null" if given == [None] else f"[{','.join(map(str, given))}]"
        raise ValueError(f"dataset.path={shown}, expected a store, or several different ones")
    for one in paths:
        if not one.exists():
            raise ValueError(f"dataset.path={one}: there is no data set there")
        if choice is not None:
            check_choice(one, choice)
    return paths


def check_choice(path: Path, choice: str) -> None:
    """Raises Mismatch if dataset=`choice` does not read what lies at `path`."""
    if (held := choice_of(path)) != choice:
        raise Mismatch(f"{path} is {NAMES[held]}, not {NAMES[choice]}: set dataset={held}")

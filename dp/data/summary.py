"""Describes a user's store and guesses the `shape_meta` that fits it."""

from collections.abc import Iterator

import numpy as np

from dp.data.formats.zarr import ZarrStore
from dp.data.reading import find_ends, name_of_ends


def describe(store: ZarrStore) -> Iterator[str]:
    """Yields a line for every array with its shape, type and range, and one for the episodes."""
    yield f"{store.path}: {len(store.names)} arrays"
    n_frames = count_frames(store)
    for name in store.names:
        array = store.open(name)
        yield f"{name}: {array.shape} {array.dtype}{_range(store, name)}{_missing(store, name)}"
    try:
        name = name_of_ends(store, n_frames)
        lengths = np.diff(find_ends(store, n_frames, name), prepend=0)
    except ValueError as error:
        yield f"episodes: {error}"
        return
    low, middle, high = lengths.min(), np.median(lengths), lengths.max()
    yield (
        f"{len(lengths)} episodes, {n_frames} frames; lengths {low} to {high}, median {middle:.0f} steps, from {name}"
    )


def count_frames(store: ZarrStore) -> int:
    """The number of frames: the length of the action, or else of the longest array."""
    lengths = {name: store.open(name).shape[0] for name in store.names if store.open(name).ndim}
    actions = [lengths[name] for name in lengths if _last(name) in ("action", "actions")]
    return actions[0] if actions else max(lengths.values(), default=0)


def guess(store: ZarrStore) -> str:
    """Overrides that train on the store, as a line to paste, guessed from names, shapes and types.

    Arrays of four dimensions with three channels are images, the one called action or actions is the action, and other
    arrays of floats are observations.
    """
    n_frames = count_frames(store)
    names = [name for name in store.names if store.open(name).ndim and store.open(name).shape[0] == n_frames]
    last = [_last(name) for name in names]
    action, obs = "???", []
    for name in names:
        array = store.open(name)
        short = _last(name) if last.count(_last(name)) == 1 else name.replace("/", "_")
        shape, key = array.shape[1:], "" if short == _last(name) else f", key: {name}"
        if _last(name) in ("action", "actions") and array.ndim == 2 and action == "???":
            action = f"{{shape: {list(shape)}{'' if _last(name) == 'action' and not key else f', key: {name}'}}}"
        elif array.ndim == 4 and 3 in (shape[0], shape[2]):
            size = list(shape[:2] if shape[2] == 3 else shape[1:])
            obs.append(f"{short}: {{type: rgb, shape: {[3, *size]}{key}}}")
        elif array.dtype.kind == "f" and array.ndim < 4:
            obs.append(f"{short}: {{type: low_dim, shape: {list(shape or (1,))}{key}}}")
    return (
        f"task=own dataset=zarr 'task.shape_meta={{obs: {{{', '.join(obs)}}}, action: {action}}}' "
        f"dataset.path={store.path}"
    )


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _range(store: ZarrStore, name: str) -> str:
    """Lowest and highest value of an array of numbers, unless they are images."""
    array = store.open(name)
    if array.dtype.kind not in "fiu" or array.ndim > 3 or 0 in array.shape:
        return ""
    extremes = [(values.min(), values.max()) for _, values in store.blocks(name)]
    return f", {float(min(low for low, _ in extremes)):g} to {float(max(high for _, high in extremes)):g}"


def _missing(store: ZarrStore, name: str) -> str:
    array = store.open(name)
    missing = len(store.missing_chunks(name))
    return f"; {missing} chunks are not stored and read as {array.fill_value}" if missing else ""

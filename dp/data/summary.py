"""Describes a user's store and guesses the `shape_meta` that fits it."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from dp.data.formats.store import Store
from dp.data.reading import find_ends, name_of_ends


def describe(store: Store) -> Iterator[str]:
    """Yields a line for every array with its shape, type and range, and one for the episodes."""
    yield f"{store.path}: {len(store.names)} arrays"
    n_frames = count_frames(store)
    for name in store.names:
        array = store.open(name)
        yield f"{name}: {array.shape} {array.dtype}{_range(store, name)}{store.remark(name)}"
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


def count_frames(store: Store) -> int:
    """The number of frames: the length of the action, or else of the longest array."""
    lengths = {name: store.open(name).shape[0] for name in store.names if store.open(name).ndim}
    actions = [lengths[name] for name in lengths if is_action(store, name)]
    return actions[0] if actions else max(lengths.values(), default=0)


def guess(store: Store) -> dict[str, Any]:
    """A `shape_meta` for the store, guessed from names, shapes and types. The action is "???" if none is found.

    Arrays of four dimensions with three channels are images, the one called action or actions is the action, and other
    arrays of floats are observations.
    """
    n_frames = count_frames(store)
    names = [name for name in store.names if store.open(name).shape[:1] == (n_frames,)]
    names = [name for name in names if is_action(store, name) or store.observed(name)]
    last = [store.last(name) for name in names]
    meta: dict[str, Any] = {"obs": {}, "action": "???"}
    for name in names:
        array = store.open(name)
        short = _word(store.last(name) if last.count(store.last(name)) == 1 else name)
        shape = list(array.shape[1:] or (1,))
        key = {} if short == store.last(name) else {"key": name}
        if is_action(store, name) and array.ndim == 2 and meta["action"] == "???":
            meta["action"] = {"shape": shape, **({} if store.last(name) == "action" and not key else {"key": name})}
        elif is_image(array):
            size = shape[:2] if shape[2] == 3 else shape[1:]
            meta["obs"][short] = {"type": "rgb", "shape": [3, *size], **key}
        elif array.dtype.kind == "f" and array.ndim < 4:
            meta["obs"][short] = {"type": "low_dim", "shape": shape, **key}
    return meta


def _word(name: str) -> str:
    """What a key may be called on a command line."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    return word if word[:1].isalpha() else f"obs_{word}"


def is_action(store: Store, name: str) -> bool:
    """Whether the array is called action or actions."""
    return store.last(name) in ("action", "actions")


def is_image(array: Any) -> bool:
    """Whether an array of this shape holds images with three channels, first or last."""
    return array.ndim == 4 and 3 in (array.shape[1], array.shape[3])


def _range(store: Store, name: str) -> str:
    """Lowest and highest value of numbers that are not images, and the first frame that is not finite."""
    array = store.open(name)
    if array.dtype.kind not in "fiu" or not 0 < array.ndim < 4 or 0 in array.shape:
        return ""
    extremes, at = [], []
    for rows, values in store.blocks(name):
        finite = np.isfinite(values)
        extremes += [float(end) for end in (values[finite].min(), values[finite].max())] if finite.any() else []
        at += (rows.start + np.flatnonzero(~finite.reshape(len(values), -1).all(1))[:1]).tolist()
    span = f", {min(extremes):g} to {max(extremes):g}" if extremes else ""
    return span + (f", NOT FINITE at frame {at[0]}" if at else "")

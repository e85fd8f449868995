"""Stored pictures of any layout and number type as uint8, channels last."""

import numpy as np

from dp.data.cache import Frames
from dp.data.formats.store import Store
from dp.progress import Progress

OVERSHOOT = 0.01
"""Tolerance by which float images may leave [0, 1], as resampling filters do."""


def channels_first(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Returns whether frames of `shape` have their channels first. `expected` is (3, Y, X).

    Raises ValueError if frames of this shape are not the expected image, or if either layout would fit.
    """
    first, last = shape == expected, shape == (*expected[1:], 3)
    if first and last:
        raise ValueError(f"frames of shape {shape} may have their channels first or last")
    if not first and not last:
        raise ValueError(f"frames of shape {shape} are not images of shape {list(expected)}")
    return first


def stored_frames(store: Store, name: str, expected: tuple[int, ...], n_frames: int | None = None) -> Frames:
    """The images of the array `name`, for `load_images` to decode: integers 0..255, floats 0..255 or 0..1, or
    booleans.

    expected: (3, Y, X). n_frames: how many of the first frames to take, by default all.
    """
    array = store.open(name)
    n = array.shape[0] if n_frames is None else n_frames
    first = channels_first(array.shape[1:], expected)

    def write(images: np.ndarray) -> None:
        if array.dtype.kind not in "fb" or _decode(store, name, first, images, scale=255):
            _decode(store, name, first, images, scale=1)

    key = store.fingerprint(name) + (f"-{n}" if n < array.shape[0] else "")
    return Frames(key, (n, *expected[1:], 3), write)


def _decode(store: Store, name: str, first: bool, images: np.ndarray, scale: int) -> bool:
    """Writes the images times `scale`. Stops and returns True if they need another scale: 1 instead of 255.

    Raises ValueError for values that are in neither range.
    """
    highest = 0.0
    bar = Progress(total=len(images), desc=f"decoding {name}", unit="frame", leave=False)
    for rows, values in store.blocks(name):
        bar.update(rows.stop - rows.start)
        values = values[: max(0, len(images) - rows.start)]
        if values.dtype.kind == "b":
            values = values.astype(np.float32)
        if not len(values):
            break
        low, high = float(values.min()), float(values.max())
        highest = max(highest, high)
        slack = OVERSHOOT if scale == 255 else 0.5 if values.dtype.kind == "f" else 0
        if scale == 255 and high > 1 + slack:
            return True
        if not (low >= -slack and high <= 255 / scale + slack):
            where = f"{store.path / name} holds values from {low:g} to {high:g} in frames {rows.start}-{rows.stop}"
            raise ValueError(f"{where}, expected an image: 0 to 255, or floats from 0 to 1")
        if values.dtype.kind == "f":
            values = np.clip(np.rint(values * scale if scale != 1 else values), 0, 255)
        images[rows.start : rows.start + len(values)] = np.moveaxis(values, 1, -1) if first else values
    if scale == 1 and 0 < highest < 2:  # no floats from 0 to 1, and as 0 to 255 it would be black
        raise ValueError(
            f"{store.path / name} holds values up to {highest:g}, expected 0 to 255, or floats from 0 to 1"
        )
    return False

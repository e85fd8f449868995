"""Pictures of any number type become the same bytes."""

from pathlib import Path

import numpy as np
import pytest

from dp.data.cache import load_images
from dp.data.formats.zarr import ZarrStore
from dp.data.images import stored_frames
from tests.dp.data.stores import write

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 4, 6, 3), np.uint8)
PIXELS[:8] = 0  # the first chunk alone does not show the range


def decoded(path: Path, values: np.ndarray) -> np.ndarray:
    store = ZarrStore(write(path / "a.zarr", {"x": values}))
    return load_images([stored_frames(store, "x", (3, 4, 6))], path / "cache")


@pytest.mark.parametrize("block_bytes", [1, 1 << 20])
@pytest.mark.parametrize(
    "values",
    [
        PIXELS,
        PIXELS.astype(np.int64),
        PIXELS.astype(np.float32),
        PIXELS.astype(np.float64) + 0.3,
        (PIXELS / 255).astype(np.float32),
        (PIXELS / 255).astype(np.float16),
        np.moveaxis(PIXELS, -1, 1) / 255,
    ],
    ids=["uint8", "int64", "float32", "fractions", "unit", "half", "channels first"],
)
def test_every_type_gives_the_same_bytes(
    tmp_path: Path, values: np.ndarray, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp.data.formats.zarr.BLOCK_BYTES", block_bytes)
    np.testing.assert_array_equal(decoded(tmp_path, values), PIXELS)


@pytest.mark.parametrize("value", [-1.0, 256.0, np.nan, np.inf])
@pytest.mark.parametrize("scale", [1, 255])
def test_values_of_no_image_are_refused(tmp_path: Path, value: float, scale: int) -> None:
    values = (PIXELS / scale).astype(np.float32)
    values[13, 2, 3, 1] = value
    with pytest.raises(ValueError, match=f"{tmp_path}/a.zarr/x holds values .*0 to 255, or floats from 0 to 1"):
        decoded(tmp_path, values)
    assert not list((tmp_path / "cache").glob("[!.]*"))  # nothing half done is left behind


def test_a_range_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds values up to 1\.5, expected 0 to 255, or floats from 0 to 1"):
        decoded(tmp_path, (PIXELS / 255 * 1.5).astype(np.float32))


def test_booleans_are_black_and_white_and_integers_from_0_to_1_are_refused(tmp_path: Path) -> None:
    np.testing.assert_array_equal(decoded(tmp_path / "a", PIXELS > 128), (PIXELS > 128) * np.uint8(255))
    with pytest.raises(ValueError, match="holds values up to 1, expected 0 to 255"):
        decoded(tmp_path / "b", (PIXELS > 128).astype(np.uint8))

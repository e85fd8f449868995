"""A column takes the memory that its rows need, whatever its file says."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dp.data.formats.parquet import ParquetFile
from tests.dp.data.formats.hostile import refused

NOISE = np.random.default_rng(0).integers(0, 1 << 60, 20_000)


def repeated(file: Path, n_bytes: int, noise: np.ndarray = NOISE) -> None:
    """One long text of zeros, named by each of 20,000 rows in a few bytes, next to noise that does not compress."""
    index = pa.array(np.zeros(len(NOISE), np.int32))
    texts = pa.DictionaryArray.from_arrays(index, pa.array([bytes(n_bytes)], pa.binary()))
    pq.write_table(pa.table({"x": texts, "noise": noise}), file, compression="zstd", store_schema=False)


def test_an_entry_that_every_row_repeats_is_stopped_when_it_takes_a_gigabyte(tmp_path: Path) -> None:
    repeated(tmp_path / "a.parquet", 1 << 20)
    with refused("a.parquet: x takes more than 1,024 MB to decode"):
        list(ParquetFile(tmp_path / "a.parquet").batches("x", len(NOISE)))
    repeated(tmp_path / "a.parquet", 1 << 10)
    assert sum(map(len, ParquetFile(tmp_path / "a.parquet").batches("x", len(NOISE)))) == len(NOISE)


def test_a_column_that_unpacks_to_more_than_its_file_can_hold_is_refused(tmp_path: Path) -> None:
    repeated(tmp_path / "a.parquet", 8 << 20, np.zeros_like(NOISE))
    with refused("has .* bytes, but x alone declares to unpack to 8,38"):
        ParquetFile(tmp_path / "a.parquet")


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3)])
def test_numbers_of_any_shape_are_read_in_batches(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(20 * int(np.prod(shape)), dtype=np.float64).reshape(20, *shape)
    pq.write_table(pa.table({"y": range(20), "x": values.tolist()}), tmp_path / "a.parquet")
    shape = shape or (1,)
    if shape == (1,) and values.ndim == 2:
        values = values[:, 0]
        pq.write_table(pa.table({"x": values}), tmp_path / "a.parquet")
    parts = list(ParquetFile(tmp_path / "a.parquet").numbers("x", np.dtype(np.float64), shape, 7))
    assert [len(part) for part in parts] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate(parts), values.reshape(20, *shape))

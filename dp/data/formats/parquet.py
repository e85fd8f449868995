"""Columns of parquet files within bounds: a row group is compared with what its file can hold before it is read."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dp.data.formats.memory import limited
from dp.data.formats.store import MAX_RATIO, check_ordinary, first_line

pa.allocate_buffer(1 << 16)  # Arrow's allocator reserves a gigabyte at once, which is not to happen within `limited`

MAX_ROWS = 1_000_000_000

MAX_COLUMN_BYTES = 1 << 30
"""Largest column of a row group, unpacked but encoded."""

MAX_METADATA_ITEMS = 4_000_000
"""Most bytes of a text, and most entries of a list, in the metadata of a file."""


MAX_TEXTS = 1 << 17


class ParquetFile:
    """A parquet file. Opening reads its footer alone.

    Raises ValueError for what is no such file, and for a footer that declares more than the file can hold.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = check_ordinary(path)
        with limited(path):
            try:
                self._file = pq.ParquetFile(
                    path,
                    thrift_string_size_limit=MAX_METADATA_ITEMS,
                    thrift_container_size_limit=MAX_METADATA_ITEMS,
                    pre_buffer=False,
                )
            except MemoryError:
                raise
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"cannot read {path} as parquet: {first_line(error)}") from error
        self.n_rows = self._file.metadata.num_rows
        if not 0 <= self.n_rows <= MAX_ROWS:
            raise ValueError(f"{path} declares {self.n_rows:,} rows, expected at most {MAX_ROWS:,}")
        self._check_groups(size)

    def _check_groups(self, size: int) -> None:
        metadata, unpacked, n_rows = self._file.metadata, 0, 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            n_rows += group.num_rows
            for column in map(group.column, range(group.num_columns)):
                n_bytes = column.total_uncompressed_size
                unpacked += n_bytes
                if not 0 <= n_bytes <= MAX_COLUMN_BYTES or unpacked > MAX_RATIO * size:
                    raise ValueError(
                        f"{self.path} has {size:,} bytes, but {column.path_in_schema[:60]} alone declares to unpack "
                        f"to {n_bytes:,}"
                    )
        if n_rows != self.n_rows:
            raise ValueError(f"{self.path} declares {self.n_rows:,} rows, but its row groups hold {n_rows:,}")

    @property
    def columns(self) -> list[str]:
        return self._file.schema_arrow.names

    def batches(self, column: str, n_rows: int) -> Iterator[Any]:
        """Yields the values of a column as arrow arrays of at most `n_rows` rows. Raises ValueError for damage."""
        if column not in self.columns:
            raise ValueError(f"{self.path} has no column {column}, it has {', '.join(self.columns)[:300]}")
        batches = self._file.iter_batches(batch_size=n_rows, columns=[column], use_threads=False)
        while (batch := self._next(batches, column)) is not None:
            yield batch.column(batch.schema.get_field_index(column))

    def _next(self, batches: Iterator[Any], column: str) -> Any:
        with limited(f"{self.path}: {column}"):
            try:
                return next(batches, None)
            except MemoryError:
                raise
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{self.path}: {column} is damaged: {first_line(error)}") from error

    def numbers(self, column: str, dtype: np.dtype, shape: tuple[int, ...], n_rows: int) -> Iterator[np.ndarray]:
        """Yields the values of a column of numbers, (at most n_rows, *shape) at a time.

        Raises ValueError for values of another type or shape, and for missing ones.
        """
        what = f"{self.path}: {column}"
        self._check_count(column, shape, what)
        for array in self.batches(column, n_rows):
            values = _flat(array, shape if shape != (1,) else (), what).to_numpy(zero_copy_only=False)
            if values.dtype != dtype:
                raise ValueError(f"{what} holds {values.dtype}, but {dtype} is declared")
            yield values.reshape(len(array), *shape)

    def _check_count(self, column: str, shape: tuple[int, ...], what: str) -> None:
        """Raises ValueError if a row group declares more values than its rows have: a row may be a list of any length,
        and a billion equal values take a few bytes."""
        schema, metadata = self._file.schema_arrow, self._file.metadata
        if column not in schema.names:
            return
        first = sum(_leaves(field.type) for field in list(schema)[: schema.get_field_index(column)])
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.num_columns > first and group.column(first).num_values != group.num_rows * math.prod(shape):
                raise ValueError(
                    f"{what} holds {group.column(first).num_values:,} numbers in {group.num_rows:,} rows, but shape "
                    f"{list(shape)} is declared"
                )

    def texts(self, column: str) -> list[str]:
        """The values of a column of texts. Raises ValueError for other values, and for very many."""
        found: list[str] = []
        for array in self.batches(column, MAX_TEXTS):
            if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)) or array.null_count:
                raise ValueError(f"{self.path}: {column} holds {array.type}, expected texts")
            found += array.to_pylist()
            if len(found) >= MAX_TEXTS or array.nbytes > MAX_METADATA_ITEMS:
                raise ValueError(f"{self.path}: {column} holds too many texts")
        return found


def _leaves(kind: Any) -> int:
    """Columns of the file that a field of this type takes."""
    if not pa.types.is_nested(kind):
        return 1
    return sum(_leaves(kind.field(number).type) for number in range(kind.num_fields))


def _flat(array: Any, shape: tuple[int, ...], what: str) -> Any:
    """The numbers of nested lists of this shape. Raises ValueError for lists of other lengths, and for nulls."""
    if array.null_count:
        raise ValueError(f"{what} lacks values, expected one for every frame")
    if not shape:
        if pa.types.is_nested(array.type):
            raise ValueError(f"{what} holds lists, but one number a frame is declared")
        return array
    if not (pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type)):
        raise ValueError(f"{what} holds {array.type}, but shape {list(shape)} is declared")
    lengths = pc.unique(pc.list_value_length(array)).to_pylist()
    if lengths not in ([], [shape[0]]):
        raise ValueError(f"{what} holds lists of {lengths[:3]} entries, but shape {list(shape)} is declared")
    return _flat(array.flatten(), shape[1:], what)

"""Reads wandb's offline file: protobuf records in LevelDB's log format, after a header of seven bytes."""

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32_768, 7
FULL, FIRST, LAST = 1, 2, 4


def records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Those that are written whole."""
    data, position, parts = file.read_bytes(), HEADER, b""
    while position + HEADER <= len(data):
        room = BLOCK - position % BLOCK
        if room < HEADER:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        position += HEADER
        if position + length > len(data):
            return  # wandb is still writing it
        parts = (b"" if kind in (FULL, FIRST) else parts) + data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield wandb_internal_pb2.Record.FromString(parts)

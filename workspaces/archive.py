"""Files that torch writes: zip files without compression, checked before anything in them is unpickled."""

import struct
import zipfile
import zlib
from pathlib import Path

MAX_PICKLE_BYTES = 8 << 20
"""Largest pickle of a checkpoint. It names the tensors, at 140 bytes each."""

DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError, struct.error, IndexError)
"""Errors of reading a damaged zip file."""


def fault(archive: zipfile.ZipFile, path: Path) -> str | None:
    """Describes why the parts of the zip file `path` may not be read; None if they may.

    Their checksums are compared when they are read.
    """
    parts = archive.infolist()
    n_bytes = sum(part.file_size for part in parts)
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or n_bytes > path.stat().st_size:
        return "it is compressed and could unpack to any size"
    pickles = [part for part in parts if part.filename.endswith(".pkl")]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        n_bytes = sum(part.file_size for part in pickles)
        return f"it has {len(pickles)} pickles of {n_bytes:,} bytes, expected one of at most {MAX_PICKLE_BYTES:,}"
    return None


def read_pickle(archive: zipfile.ZipFile) -> bytes:
    """The bytes of the only pickle. Nothing is unpickled."""
    return archive.read(next(part for part in archive.infolist() if part.filename.endswith(".pkl")))


def reason(error: Exception) -> str:
    """An error of `DAMAGED` in a line."""
    return (str(error) or type(error).__name__).splitlines()[0]

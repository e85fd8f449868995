"""A limit on what a decoder may allocate. Declared sizes are checked first; this stops what lies about them."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ALLOWANCE = 1 << 30
"""Bytes that a decoder may need besides its output: buffers, dictionaries, reference frames."""

STATUS = Path("/proc/self/status")


@contextmanager
def limited(what: object, output_bytes: int = 0) -> Iterator[None]:
    """Limits this process, while the block runs, to `output_bytes` and `ALLOWANCE` more memory than it has.

    Linux counts heap and private mappings (RLIMIT_DATA, setrlimit(2)). Elsewhere nothing is limited.

    Raises ValueError, naming `what`, where the limit is reached.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _used() + output_bytes + ALLOWANCE
    if before[1] != resource.RLIM_INFINITY:
        limit = min(limit, before[1])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))
    try:
        yield
    except MemoryError as error:
        raise ValueError(
            f"{what} takes more than {ALLOWANCE >> 20:,} MB to decode: it does not hold what it declares"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _used() -> int:
    """Bytes that count towards the limit."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmData")]
    return int(line.split()[1]) << 10

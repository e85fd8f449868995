"""What a stranger's file may cost."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

MAX_BYTES = 2 << 30


@contextmanager
def refused(said: str) -> Iterator[None]:
    """The block fails with a line that matches `said`, and takes no more memory than `MAX_BYTES`."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    with pytest.raises(ValueError, match=said) as caught:
        yield
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before < MAX_BYTES

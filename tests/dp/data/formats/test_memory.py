"""A decoder that takes more memory than it says is stopped."""

import resource
import sys
from collections.abc import Callable

import numpy as np
import pytest

from dp.data.formats.memory import ALLOWANCE, limited

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux counts private memory")


@pytest.mark.parametrize("allocate", [bytearray, lambda n_bytes: np.zeros(n_bytes, np.uint8)])
def test_what_takes_more_than_it_declares_is_named(allocate: Callable[[int], object]) -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ValueError, match=r"x\.mp4 takes more than 1,024 MB to decode"), limited("x.mp4"):
        allocate(2 * ALLOWANCE)
    with limited("x.mp4", output_bytes=2 * ALLOWANCE):
        np.zeros(2 * ALLOWANCE, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_other_errors_pass(tmp_path: object) -> None:
    with pytest.raises(KeyError), limited("x"):
        raise KeyError

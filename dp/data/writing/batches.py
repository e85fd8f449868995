"""Whole episodes for one file each. A file is the unit that a killed conversion does not write again."""

from collections.abc import Iterator

import numpy as np

from dp.data.episodes import Episodes

MAX_BYTES = 64 << 20
"""Decoded bytes of the episodes in one file, unless a single one has more."""


def batches(episodes: Episodes) -> Iterator[range]:
    """Yields numbers of consecutive episodes. They depend on nothing but the data."""
    row_bytes = sum(array.nbytes for array in episodes.arrays.values()) // max(1, len(episodes))
    start, n_bytes = 0, 0
    for number, length in enumerate(np.diff(episodes.episode_ends, prepend=0).tolist()):
        if number > start and n_bytes + length * row_bytes > MAX_BYTES:
            yield range(start, number)
            start, n_bytes = number, 0
        n_bytes += length * row_bytes
    yield range(start, episodes.n_episodes)


def rows_of(episodes: Episodes, numbers: range) -> range:
    """The frames of consecutive episodes."""
    return range(int(episodes.episode_starts[numbers[0]]), int(episodes.episode_ends[numbers[-1]]))

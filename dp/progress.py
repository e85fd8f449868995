"""Progress of long work: a bar on a terminal, and a line now and then anywhere else."""

import io
import logging
import sys
import time
from collections.abc import Iterable
from threading import RLock
from typing import Any

from tqdm import tqdm

# One process writes. tqdm's own lock is for several, and leaks a semaphore in workers that are ended at once.
tqdm.set_lock(RLock())

log = logging.getLogger(__name__)

LOG_S = 30
"""Seconds between two lines where there is no terminal."""


class Progress(tqdm):
    """`tqdm`, which without a terminal logs "desc: 12/50 episodes" every LOG_S seconds and leaves nothing behind."""

    monitor_interval = 0  # no thread of its own

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        *,
        desc: str,
        unit: str,
        total: int | None = None,
        initial: int = 0,
        leave: bool = True,
    ) -> None:
        self._shown, self._said = sys.stderr.isatty(), time.monotonic()
        quiet: dict[str, Any] = {} if self._shown else {"file": io.StringIO(), "mininterval": LOG_S, "miniters": 1}
        super().__init__(iterable, desc=desc, unit=unit, total=total, initial=initial, leave=leave, **quiet)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if self._shown:
            return super().display(msg, pos)
        if time.monotonic() - self._said >= LOG_S:
            self._said = time.monotonic()
            log.info("%s: %d%s %ss", self.desc.rstrip(": "), self.n, f"/{self.total}" if self.total else "", self.unit)
        return True

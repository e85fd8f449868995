"""Signals that ask a command to stop, answered when nothing is lost by it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, ClassVar

from workspaces.errors import Interrupted


class Signals:
    """Turns SIGINT, SIGTERM and SIGHUP into a request: kept until a safe moment, or raised within `interrupting`.

    SIGUSR1 and SIGUSR2 count, too, if a launcher waits for them: submitit sends one before the end of a job's time.

    Further signals within PATIENCE_S seconds change nothing, so that a burst still saves. Later ones raise
    KeyboardInterrupt. Once a signal has come, this stays so until the process ends.
    """

    NAMES: ClassVar = {
        signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP",
        signal.SIGUSR1: "SIGUSR1", signal.SIGUSR2: "SIGUSR2",
    }  # fmt: skip
    OF_LAUNCHERS: ClassVar = (signal.SIGUSR1, signal.SIGUSR2)
    PATIENCE_S = 10

    def __init__(self) -> None:
        self.received: int | None = None
        self.interruptible = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in self.NAMES:
            before = signal.getsignal(number)
            if number == signal.SIGHUP and before == signal.SIG_IGN:  # nohup ignores it, and so do we
                continue
            if number not in self.OF_LAUNCHERS or callable(before):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self.received is None:
            self.restore()

    def check(self) -> None:
        """Raises StopNow if a signal has come."""
        if self.received is not None:
            raise StopNow

    @contextlib.contextmanager
    def interrupting(self, now: bool = True) -> Iterator[None]:
        """A context that a signal leaves at once, with StopNow, if `now`."""
        self.interruptible = now
        try:
            yield
        finally:
            self.interruptible = False

    def restore(self) -> None:
        """Restores the earlier handlers of signals."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def interrupted(self, message: str) -> Interrupted:
        """The error to leave with once the run is saved, with the exit code of the signal that came.

        A launcher's handler is called first. It queues the job again and leaves, at least in the first of its
        processes.
        """
        assert self.received is not None
        if self.received in self.OF_LAUNCHERS:
            self._before[self.received](self.received, None)
        return Interrupted(f"{self.NAMES[signal.Signals(self.received)]}: {message}", 128 + self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._since > self.PATIENCE_S:
                raise KeyboardInterrupt
            return
        self.received, self._since = number, time.monotonic()
        name = self.NAMES[signal.Signals(number)]
        with contextlib.suppress(OSError):  # not through a stream, whose buffer may be in use
            os.write(2, f"\n{name}: saving. Repeat after {self.PATIENCE_S} s to stop at once\n".encode())
        if self.interruptible:
            raise StopNow


class StopNow(BaseException):
    """A signal came while stopping was safe. It is not an Exception, so that no handler on the way swallows it."""

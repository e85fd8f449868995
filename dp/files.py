"""Files that are there whole or not at all, and files that only one process may have."""

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Lets `write` fill a temporary file, and gives it the name `path` once it is on the disk whole.

    On any error, a full disk included, the file that had the name before is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.unlink(missing_ok=True)  # of a process that was killed, or a link that leads elsewhere
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_bytes(path: Path, content: bytes) -> None:
    """The same for a file that is there already, in memory."""
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """The same for a JSON file."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def lock(path: Path) -> IO[str] | None:
    """Takes the file `path` for this process alone. None where another one has it.

    The kernel lets go of it when the process dies, however it does; before that, closing the file does.
    """
    file = _lockable(path)
    for _ in range(20):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            time.sleep(0.05)  # somebody who only looks whether it is free holds it for a moment
    file.close()
    return None


def wait_for_lock(path: Path) -> IO[str]:
    """The same, however long another process has it."""
    file = _lockable(path)
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _lockable(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")

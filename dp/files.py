"""Files that exist whole or not at all, and files that only one process may have."""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

log = logging.getLogger(__name__)


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
    # The new name is on the disk only once the directory is.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_bytes(path: Path, content: bytes) -> None:
    """The same for content that is already in memory."""
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """The same for a JSON file."""
    write_bytes(path, json.dumps(value, indent=1).encode())


def differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Names the settings in which a directory (`there`) differs from a command (`here`), empty if in none."""
    return ", ".join(
        f"{key}={json.dumps(there.get(key))} there, {json.dumps(here.get(key))} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    )


def lock(path: Path) -> IO[str] | None:
    """Locks the file `path` for this process. None if another process has it.

    The kernel releases the lock when the process dies, however it does; before that, closing the file does. A file
    system without locks (Lustre, NFS and FUSE mounts without flock) gives a warning and the file, unlocked.
    """
    file = _lockable(path)
    for _ in range(20):
        if _free(file):
            return file
        time.sleep(0.05)  # `in_use` holds it for a moment
    file.close()
    return None


def wait_for_lock(path: Path) -> IO[str]:
    """The same, however long another process has it."""
    file = _lockable(path)
    while not _free(file):
        time.sleep(0.05)
    return file


def in_use(path: Path) -> bool:
    """Whether a process has locked the file `path`. Creates nothing and needs no permission to write.

    On a file system without locks, no file is ever in use.
    """
    if not path.is_file():  # opening a FIFO would wait for ever
        return False
    try:
        with path.open() as file:
            for _ in range(3):
                if lock_descriptor(file.fileno(), blocking=False):
                    return False
                time.sleep(0.01)  # somebody else may be looking
    except OSError:
        return False
    return True


def _lockable(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _free(file: IO[str]) -> bool:
    """Locks the file and returns True, or False if another process has it. Other errors mean "no locks here"."""
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:
        log.warning(
            "WARNING: %s cannot be locked (%s). Make sure that no other process uses this directory", file.name, error
        )
        return True

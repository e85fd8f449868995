"""Files are whole or not there, and locks tell "taken" from "there are none here"."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dp import files
from dp.files import in_use, lock, wait_for_lock, write_atomically


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that has the lock."""
    code = "import sys, time; from dp.files import lock; from pathlib import Path; held = lock(Path(sys.argv[1]))\n"
    command = [sys.executable, "-c", code + "print('held', flush=True); time.sleep(60)", str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_one_processs_until_it_dies(holder: subprocess.Popen, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    assert in_use(path)
    assert lock(path) is None
    holder.kill()
    holder.wait()
    assert not in_use(path)
    with wait_for_lock(path):
        assert in_use(path)
    assert not in_use(path)


def test_who_only_looks_writes_nothing_and_waits_for_nothing(tmp_path: Path) -> None:
    assert not in_use(tmp_path / "none")
    os.mkfifo(tmp_path / "fifo")
    assert not in_use(tmp_path / "fifo")
    (tmp_path / "file").touch(mode=0o400)
    assert not in_use(tmp_path / "file")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fifo", "file"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO, errno.EBADF])
def test_a_file_system_without_locks_is_not_another_process(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    for take in (lock, wait_for_lock):
        caplog.clear()
        with take(tmp_path / ".lock") as held:  # type: ignore[union-attr]
            assert held is not None
            assert "cannot be locked" in caplog.text
            assert not in_use(tmp_path / ".lock")


def test_an_errno_that_means_taken_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "held")

    monkeypatch.setattr("fcntl.flock", refuse)
    monkeypatch.setattr(files.time, "sleep", lambda _: None)
    assert lock(tmp_path / ".lock") is None

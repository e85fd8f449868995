"""Types commands: `python run.py ...`, in forks of a process that has imported everything (`forks.py`)."""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RUN = Path(__file__).parents[1] / "run.py"


def run_py(
    *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` answers for `python run.py ARGUMENTS` with captured output."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, name) for name in ("stdout", "stderr")}
        for file in files.values():
            file.touch()
        order = {name: str(file) for name, file in files.items()} | {"timeout": timeout, "counts": False}
        code = _forks().run(list(arguments), cwd, env, **order)["returncode"]
        stdout, stderr = (file.read_text() for file in files.values())
    if code is None:
        raise subprocess.TimeoutExpired(arguments, timeout, stdout, stderr)
    return subprocess.CompletedProcess(arguments, code, stdout, stderr)


class Forks:
    """The process of `forks.py`. It begins with this process's environment."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).parent / "forks.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(
        self, arguments: list[str], cwd: Path, env: Mapping[str, str] | None = None, **order: Any
    ) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order |= {"arguments": arguments, "cwd": str(cwd), "env": dict(os.environ if env is None else env)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


@functools.cache
def _forks() -> Forks:
    forks = Forks()
    atexit.register(forks.close)
    return forks

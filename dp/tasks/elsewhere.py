"""An environment, or any object, that runs in another Python, with packages of its own."""

import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, UInt8

from dp.tasks import serve


class Remote:
    """An object in a process of another interpreter.

    That interpreter needs numpy and the object's own packages. It sees `PYTHONPATH` and the working directory.

    Args:
        key: prefix of what the user typed, for messages: "task.env".
        target: "package.module:Class" there.
        python: path of the interpreter; None: this one.
        arguments: of the class.

    Raises:
        ValueError: if there is no such interpreter.
        RuntimeError: if it cannot make the object.
    """

    def __init__(self, key: str, target: str, python: str | None, arguments: Mapping[str, Any]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not all(target.partition(":")):
            raise ValueError(f"{key}.target={target}, expected package.module:Class")
        self._target = target
        interpreter = self._interpreter = str(Path(python or sys.executable).expanduser())
        program = Path(serve.__file__).read_text()  # as a file, its folder would come first on the path there
        try:
            self._process = subprocess.Popen(
                [interpreter, "-c", program, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        except OSError as error:
            raise ValueError(f"{key}.python={python}: {error.strerror}. Expected the path of a Python") from None
        self.ask("make", dict(arguments))

    def ask(self, method: str, arguments: Any = ()) -> Any:
        """The answer of the other process. Raises RuntimeError for its errors, and if it has died."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            serve.send(process.stdin, [method, arguments])
            kind, answer = serve.receive(process.stdout)
        except (EOFError, OSError):
            code = process.wait()
            raise RuntimeError(f"the process of {self._target} died (exit code {code}) in {method}") from None
        if kind == "error":
            raise RuntimeError(f"{self._target} in {self._interpreter}: {answer}")
        return answer

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # it reads the end of the stream and leaves
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


class Elsewhere:
    """Makes an environment in a process of another interpreter, for simulators whose packages do not go with ours.

    Args:
        target: "package.module:Class" there, or "file.py:Class", with the methods of `dp.tasks.env.Env`.
        python: path of the interpreter; None: this one.
        arguments: of the class.
        obs_names: given to the class as well if `arguments` says `obs_names: null`.

    Raises:
        ValueError: if there is no such interpreter, or it cannot make the environment.
    """

    module_arguments: ClassVar[tuple[str, ...]] = ("target",)

    program_arguments: ClassVar[tuple[str, ...]] = ("python",)
    """Arguments that name a program to start: a file names only those that its reader trusts."""

    def __init__(
        self,
        obs_names: Sequence[str],
        target: str,
        python: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        given = dict(arguments or {})
        if "obs_names" in given and given["obs_names"] is None:
            given["obs_names"] = list(obs_names)
        self._state: Any = (0.0, None, False, {})
        self._remote = Remote("task.env", target, python, given)
        self._ask = self._remote.ask
        self.control_hz = float(self._ask("get", ["control_hz"]))

    def reset(self, seed: int) -> None:
        self._state = self._ask("reset", [seed])

    def observe(self) -> dict[str, np.ndarray]:
        return self._ask("observe")

    def step(self, action: Float[np.ndarray, " Da"]) -> None:
        self._state = self._ask("step", [action])

    @property
    def reward(self) -> float:
        return self._state[0]

    @property
    def success(self) -> bool | None:
        return self._state[1]

    @property
    def terminated(self) -> bool:
        return self._state[2]

    def info(self) -> dict[str, float]:
        return self._state[3]

    def render(self) -> UInt8[np.ndarray, "Y X 3"]:
        return self._ask("render")

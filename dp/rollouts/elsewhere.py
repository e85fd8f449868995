"""A policy that runs in another Python, with packages of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from dp.tasks.elsewhere import Remote


class Elsewhere:
    """A policy in a process of another interpreter, for policies whose packages do not go with ours.

    That interpreter needs numpy and the policy's own packages, and nothing of `dp`. `python` may be any program that
    passes its arguments, its standard input and its standard output on to one: a script with ssh or docker in it.

    Args:
        target: "package.module:Class" there, with the methods of `dp.rollouts.adapter.Acting`.
        python: path of the interpreter; None: this one.
        arguments: of the class.

    Raises:
        ValueError: if there is no such interpreter.
        RuntimeError: if it cannot make the policy.
    """

    def __init__(self, target: str, python: str | None = None, arguments: Mapping[str, Any] | None = None) -> None:
        self._remote = Remote("policy", target, python, arguments or {})
        if self._remote.ask("has", ["reset"]):
            self.reset = lambda seed: self._remote.ask("reset", [seed])

    def act(self, obs: dict[str, np.ndarray]) -> Float[np.ndarray, "B T Da"]:
        return self._remote.ask("act", [obs])

"""Protocols of recorded episodes, whoever acted in them."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

EXECUTED = "executed"
"""Array of a store with the actions as they were executed, where the array "action" may say what was meant."""


SOLVED = "solved by the policy"
"""Reason why an expert demonstrates nothing in an episode."""


@runtime_checkable
class Demonstration(Protocol):
    """One recorded episode: frame t is what was seen before action t was executed."""

    @property
    def seed(self) -> int: ...

    @property
    def success(self) -> bool: ...

    def __len__(self) -> int: ...

    def frames(self) -> Mapping[str, np.ndarray]:
        """Array of the store under data/ -> its rows (T, ...)."""

    def facts(self) -> Mapping[str, Any]:
        """Array of the store under meta/ -> what it says of this episode."""

    def final(self) -> Mapping[str, float]:
        """Named quantities of the environment after the last action."""


@runtime_checkable
class Recording(Protocol):
    """An episode that is being recorded."""

    def step(self, action: np.ndarray) -> bool:
        """Executes `action`. Returns whether the task is solved now."""
        ...

    def demonstration(self) -> Demonstration:
        """The recording so far."""
        ...


@runtime_checkable
class Collector(Protocol):
    """Makes demonstrations, always the same one for a seed, in every process."""

    def __call__(self, seed: int) -> Demonstration | None:
        """From the initial state of `seed`; None if there is nothing worth keeping.

        May raise `Finished`. Three attributes are optional. `in_this_process`, if true: it is never sent to worker
        processes. `chooses`, if true: what it returns is stored, solved or not. `n_stored` is set to the number of
        episodes in the store before each call.
        """
        ...


@runtime_checkable
class Expert(Protocol):
    """Somebody who can go on from anywhere in an episode, in any process and always alike."""

    def __call__(self, seed: int, actions: np.ndarray) -> Demonstration | None:
        """What it does where `actions` (T, Da) lead in the episode of `seed`; None if it fails."""
        ...


class Finished(Exception):
    """Raised when the demonstrator stops."""

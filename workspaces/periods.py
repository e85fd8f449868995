"""How often a training does what it does not do at every step."""

from collections.abc import Mapping
from typing import Any, TypedDict

from dp import limits


class Every(TypedDict):
    """Periods in optimizer steps (`workspace.every`)."""

    log: limits.Positive
    validate: limits.Positive
    rollout: limits.Positive
    checkpoint: limits.Positive


def due(what: str, step: int, settings: Mapping[str, Any]) -> bool:
    """Whether `what`, a key of `Every`, is due after `step` steps, given the `workspace` settings of a training.

    Everything is due at the last step.
    """
    return step > 0 and (step % settings["every"][what] == 0 or step == settings["num_steps"])

"""PushT: push a T-shaped block onto its goal pose (Florence et al. 2022; Chi et al. 2023, section V.B)."""

from typing import Any

from dp.tasks.pusht.task import PushT

__all__ = ["PushT", "PushTEnv"]


def __getattr__(name: str) -> Any:
    """Imports `PushTEnv` on first use: the simulator takes half a second, and a report needs none."""
    if name != "PushTEnv":
        raise AttributeError(name)
    from dp.tasks.pusht.env import PushTEnv

    return PushTEnv

"""PushT: push a T-shaped block onto its goal pose (Florence et al. 2022; Chi et al. 2023, section V.B)."""

from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.task import PushT

__all__ = ["PushT", "PushTEnv"]

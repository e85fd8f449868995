"""Thin adapters over simulators, and the pool that runs many of them. Nothing in here imports torch."""

from dp.envs.pusht import PushTEnv

__all__ = ["PushTEnv"]

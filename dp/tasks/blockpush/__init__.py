"""Multimodal Block Push: push two blocks into two targets, in any order (Florence et al. 2021, arXiv 2109.00137;
Shafiullah et al. 2022, arXiv 2206.11251; Chi et al. 2023, table IV)."""

from typing import Any

from dp.tasks.blockpush.task import BlockPush

__all__ = ["BlockPush", "BlockPushEnv"]


def __getattr__(name: str) -> Any:
    """Imports `BlockPushEnv` on first use: a report needs no simulator."""
    if name != "BlockPushEnv":
        raise AttributeError(name)
    from dp.tasks.blockpush.env import BlockPushEnv

    return BlockPushEnv

"""Demonstrations: where they come from, how they are stored, cut into windows and batched."""

from dp.data.demonstrations import Demonstrations
from dp.data.replay_buffer import ReplayBuffer
from dp.data.windows import WindowDataset

__all__ = ["Demonstrations", "ReplayBuffer", "WindowDataset"]

"""Demonstrations: how they are stored, read, cut into windows and batched. Nothing here knows a task."""

from dp.data.collected import open_collected
from dp.data.demonstrations import Demonstrations
from dp.data.episodes import Episodes
from dp.data.opening import open_lerobot, open_robomimic, open_zarr
from dp.data.windows import WindowDataset

__all__ = [
    "Demonstrations",
    "Episodes",
    "WindowDataset",
    "open_collected",
    "open_lerobot",
    "open_robomimic",
    "open_zarr",
]

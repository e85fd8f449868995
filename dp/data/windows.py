"""Windows of H steps over episodes, and the split of the episodes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from dp.data.episodes import Episodes
from dp.modalities import image_to_float
from dp.types import Batch, Obs


def window_table(
    data: Episodes, episodes: np.ndarray, horizon: int, n_obs_steps: int, n_action_steps: int
) -> Int[np.ndarray, "windows H"]:
    """Frame indices of every window of `episodes`; no window crosses an episode's ends.

    A window may begin To-1 steps before its episode and end Ta-1 steps after it; frames outside are the nearest one
    inside (replicate padding is index clipping). Reference: `create_indices` with pad_before=To-1, pad_after=Ta-1.
    """
    # Each start gives one row of indices, clipped to its episode.
    offsets = np.arange(horizon)
    windows = [np.empty((0, horizon), np.int64)]
    for low, high in zip(data.episode_starts[episodes], data.episode_ends[episodes], strict=True):
        starts = np.arange(low - (n_obs_steps - 1), high - horizon + n_action_steps)
        windows.append(np.clip(starts[:, None] + offsets, low, high - 1))
    return np.concatenate(windows)


@dataclass(frozen=True)
class Split:
    """Episode numbers, ascending."""

    train: np.ndarray
    val: np.ndarray


def split_episodes(n_episodes: int, val_ratio: float, max_train_episodes: int | None, seed: int) -> Split:
    """Holds `val_ratio` of the episodes out and trains on at most `max_train_episodes` of the others.

    val_ratio=0.02, max_train_episodes=90, seed=42 on 206 episodes is the paper's split: validation [18, 90, 134, 157].
    (The reference code then validates on everything it does not train on; here the held-out episodes are the split's.)
    """
    if not 0 <= val_ratio < 1:
        raise ValueError(f"dataset.val_ratio={val_ratio}, expected 0 <= val_ratio < 1")
    val = np.zeros(n_episodes, bool)
    if val_ratio > 0:
        n_val = min(max(1, round(n_episodes * val_ratio)), n_episodes - 1)
        val[np.random.default_rng(seed).choice(n_episodes, n_val, replace=False)] = True
    return Split(limit_episodes(np.flatnonzero(~val), max_train_episodes, seed), np.flatnonzero(val))


def limit_episodes(train: np.ndarray, max_train_episodes: int | None, seed: int) -> np.ndarray:
    """At most `max_train_episodes` of the numbers `train`, drawn with `seed`, ascending. None: all of them."""
    if max_train_episodes is not None and max_train_episodes < 1:
        raise ValueError(f"dataset.max_train_episodes={max_train_episodes}, expected at least 1, or null for all")
    if max_train_episodes is None or len(train) <= max_train_episodes:
        return train
    return np.sort(np.random.default_rng(seed).choice(train, max_train_episodes, replace=False))


class WindowDataset(Dataset):
    """Windows as samples, gathered from buffers that hold every frame once.

    `obs` maps a name to (N, ...): images uint8 (N, Y, X, 3), the rest normalised; `action` (N, Da) normalised. The
    dataset draws no random numbers.
    """

    def __init__(self, obs: Obs, action: Float[Tensor, "N Da"], table: Int[Tensor, "windows H"], n_obs_steps: int):
        self.obs, self.action, self.table, self.n_obs_steps = obs, action, table, n_obs_steps

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict:
        """One sample: images (To, 3, Y, X) in [0, 1], low-dimensional observations (To, ...), action (H, Da)."""
        batch = prepare(self.gather(torch.tensor([index], device=self.table.device)))
        return {"obs": {name: x[0] for name, x in batch["obs"].items()}, "action": batch["action"][0]}

    def gather(self, index: Int[Tensor, " B"]) -> Batch:
        """A raw batch: images still uint8 (B, To, Y, X, 3). `prepare` finishes it on the device that trains."""
        rows = self.table[index]  # (B, H)
        seen = rows[:, : self.n_obs_steps]
        return {"obs": {name: x[seen] for name, x in self.obs.items()}, "action": self.action[rows]}

    def to(self, device: torch.device) -> "WindowDataset":
        """The same windows with their buffers on `device`."""
        obs = {name: x.to(device) for name, x in self.obs.items()}
        return WindowDataset(obs, self.action.to(device), self.table.to(device), self.n_obs_steps)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (*self.obs.values(), self.action, self.table))


def prepare(batch: Batch, device: torch.device | None = None) -> Batch:
    """Moves a raw batch to `device` and turns its images (uint8) into floats in [0, 1], channels first."""
    moved = {name: x.to(device, non_blocking=True) for name, x in batch["obs"].items()}
    obs = {name: image_to_float(x) if x.dtype == torch.uint8 else x for name, x in moved.items()}
    return {"obs": obs, "action": batch["action"].to(device, non_blocking=True)}

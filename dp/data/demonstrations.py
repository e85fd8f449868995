"""Everything a training run needs of a data set."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dp.data.replay_buffer import ReplayBuffer
from dp.data.windows import WindowDataset, split_episodes, window_table
from dp.modalities import Normalizer
from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.sources import locate


class Demonstrations:
    """The PushT demonstrations: loaded, normalised once, split by episodes.

    Args:
        obs_shapes: observation name -> shape of one step; names as in `dp.tasks.pusht`.
        source: "auto", "official" or "bundled", see `dp.tasks.pusht.sources.locate`.
        path: a zarr store, or several, whose episodes are joined, or None to search.
        sha256: of the states and actions that are expected (`ReplayBuffer.sha256`), or None for any. It becomes theirs.
        val_ratio, max_train_episodes, split_seed: see `split_episodes`.
        mirror: train on every training episode and on its mirror image, too (`dp.tasks.pusht.state.mirror`).

    `buffer` holds the demonstrations as they were recorded, `split` their numbers. `train_episodes` numbers what to
    train on; mirror images come after all the recorded ones.

    Raises:
        ValueError: where there are no data, where they are not sound, or not those that `sha256` expects.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        source: str = "auto",
        path: str | Sequence[str] | None = None,
        sha256: str | None = None,
        val_ratio: float = 0.02,
        max_train_episodes: int | None = None,
        split_seed: int = 42,
        mirror: bool = False,
    ) -> None:
        self.paths = _locate_all(source, path)
        names = ["state", "action"] + (["img"] if "image" in obs_shapes else [])
        self.buffer = ReplayBuffer.join([ReplayBuffer.load(store, names) for store in self.paths])
        self.sha256 = self.buffer.sha256("state", "action")
        if sha256 not in (None, self.sha256):
            stores = ", ".join(str(store) for store in self.paths)
            raise ValueError(
                f"dataset.sha256={sha256}, but {stores} has {self.sha256}: these are other demonstrations. Give "
                "dataset.path=PATH of those that are meant, or dataset.sha256=null to take these"
            )
        self.split = split_episodes(self.buffer.n_episodes, val_ratio, max_train_episodes, split_seed)

        self.train_episodes = self.split.train
        self._frames = self.buffer
        if mirror:
            self.train_episodes = np.concatenate([self.split.train, self.split.train + self.buffer.n_episodes])
            self._frames = _with_mirror_images(self.buffer)
        arrays = self._frames.arrays
        low_dim = {
            name: torch.from_numpy(array) for name, array in pusht.low_dim_obs(arrays["state"], obs_shapes).items()
        }
        action = torch.from_numpy(arrays["action"])
        self.normalizer = Normalizer.fit({**low_dim, "action": action})  # on all episodes, as the paper does
        self._obs = {name: self.normalizer.normalize(name, x) for name, x in low_dim.items()}
        if "image" in obs_shapes:
            self._obs["image"] = torch.from_numpy(arrays["img"])
        self._action = self.normalizer.normalize("action", action)

    def windows(self, episodes: np.ndarray, horizon: int, n_obs_steps: int, n_action_steps: int) -> WindowDataset:
        """The windows of `episodes`. Raises ValueError where there are none."""
        table = window_table(self._frames, episodes, horizon, n_obs_steps, n_action_steps)
        if len(episodes) and not len(table):
            raise ValueError(f"no episode is long enough for horizon={horizon}: choose a smaller one")
        return WindowDataset(self._obs, self._action, torch.from_numpy(table), n_obs_steps)


def _locate_all(source: str, path: str | Sequence[str] | None) -> list[Path]:
    paths = path if isinstance(path, (list, tuple)) else [path]
    stores = [locate(source, None if one is None else str(one)) for one in paths]
    if not stores or len({store.resolve() for store in stores}) < len(stores):
        raise ValueError(f"dataset.path=[{','.join(map(str, paths))}], expected a store, or several different ones")
    return stores


def _with_mirror_images(buffer: ReplayBuffer) -> ReplayBuffer:
    both = ReplayBuffer.join([buffer, buffer])
    for name, array in both.arrays.items():
        pusht.mirror(name, array[: len(buffer)], out=array[len(buffer) :])
    return both

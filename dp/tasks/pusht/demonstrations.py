"""The PushT demonstrations, as training sees them."""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval
from jaxtyping import Float

from dp.data.demonstrations import Demonstrations, check_sha256
from dp.data.episodes import Episodes
from dp.data.windows import split_episodes
from dp.limits import Positive, Seed
from dp.modalities import Spec
from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.sources import OFFICIAL_SHA256, locate
from dp.tasks.pusht.store import IMAGE, ReplayBuffer

GOAL_PX = 256
"""Goal of the block in x and in y, pixels."""

POSITION_RANGE, ANGLE_RANGE = (-64.0, 576.0), (-4 * np.pi, 4 * np.pi)
"""Plausible positions (pixels, with room beyond the walls at 0 and 512) and angles (radians)."""


class PushTDemonstrations(Demonstrations):
    """Official, bundled, collected or own demonstrations of PushT.

    Args:
        obs, action: what `shape_meta` declares; names as in `dp.tasks.pusht.state.low_dim_obs`, and "image".
        source: "auto", "official" or "bundled", see `dp.tasks.pusht.sources.locate`.
        path: a zarr store, or several, whose episodes are joined, or None to search.
        sha256: expected digest of states and actions, or None for any. The attribute is their actual digest.
        val_ratio, max_train_episodes, split_seed: see `split_episodes`.
        render: draw the pictures of a store that has none from its states; None or False: an error. Collected stores
            are always drawn.
        mirror: train on every training episode and on its mirror image, too (`dp.tasks.pusht.state.mirror`).

    `buffer` holds the demonstrations as they were recorded.

    Raises:
        ValueError: if there are no data, or they are damaged, or not those that `sha256` expects.
    """

    def __init__(
        self,
        obs: Mapping[str, Spec],
        action: Spec,
        source: Literal["auto", "official", "bundled"] = "auto",
        path: str | Sequence[str] | None = None,
        sha256: str | None = None,
        val_ratio: Annotated[float, Interval(ge=0, lt=1)] = 0.02,
        max_train_episodes: Positive | None = None,
        split_seed: Seed = 42,
        mirror: bool = False,
        render: bool | None = None,
    ) -> None:
        _check_specs(obs, action)
        paths = _locate_all(source, path)
        names = ["state", "action"] + (["img"] if "image" in obs else [])
        self._render = render
        self.buffer = ReplayBuffer.load(paths, names, image=obs.get("image", IMAGE), render=render)
        digest = self.buffer.sha256("state", "action")
        check_sha256(sha256, digest, paths)
        _check_pixels(self.buffer, paths)
        split = split_episodes(self.buffer.n_episodes, val_ratio, max_train_episodes, split_seed)
        frames = _with_mirror_images(self.buffer) if mirror else self.buffer
        arrays = {**pusht.low_dim_obs(frames.arrays["state"], obs), "action": frames.arrays["action"]}
        if "image" in obs:
            arrays["image"] = frames.arrays["img"]
        episodes = Episodes(arrays, frames.episode_ends)
        super().__init__(episodes, obs, action, split, paths, digest, n_copies=2 if mirror else 1)

    @property
    def train_seeds(self) -> Sequence[int]:
        train = self.split.train
        return self.buffer.seeds[train][self.buffer.from_seed[train]].tolist()

    def executed_actions(self) -> dict[int, Float[np.ndarray, "T 2"]]:
        recorded = ReplayBuffer.load(self.paths, ["state", "action", "noise"])
        numbers = np.flatnonzero(self.buffer.from_seed).tolist()
        return {int(self.buffer.seeds[n]): recorded.executed(n)[2] for n in numbers}

    def doubts(self) -> Iterator[str]:
        yield from super().doubts()
        state, action = self.buffer.arrays["state"], self.buffer.arrays["action"]
        for what, (low, high), values in (
            ("positions of the agent", POSITION_RANGE, state[:, :2]),
            ("positions of the block", POSITION_RANGE, state[:, 2:4]),
            ("actions", POSITION_RANGE, action),
            ("angles of the block", ANGLE_RANGE, state[:, 4]),
        ):
            if values.min() < low or values.max() > high:
                yield (
                    f"{what} range from {values.min():g} to {values.max():g}, expected {low:g} to {high:g}: PushT's "
                    "positions are pixels, 0-512, its angles radians. Scale the data, or train on them with task=own"
                )
        if np.abs(state[:, 2:4]).max() < GOAL_PX / 2:
            yield (
                f"positions of the block reach {state[:, 2:4].max():g}, but its goal lies at {GOAL_PX}: PushT's "
                "positions are pixels, 0-512. Scale the data, or train on them with task=own"
            )

    def describe(self) -> Iterator[str]:
        from dp.tasks.pusht import statistics  # for people only: training starts without it

        names = list(self.buffer.arrays)
        load = partial(ReplayBuffer.load, image=self._image, render=self._render)
        stores = {path: load(path, [*names, "noise"]) for path in self.paths}
        for path, store in stores.items():
            yield from statistics.contents(path, store, official=store.sha256(*names) in OFFICIAL_SHA256)
        for name, array in self.buffer.arrays.items():
            yield f"{name}: {array.shape} {array.dtype}, {array.min():.1f} to {array.max():.1f}"
        for path, store in stores.items():
            yield from statistics.starts(path, store)
        if importlib.metadata.version("pygame") != "2.5.2":
            raise ValueError("pygame draws pixels that differ from the data set's: pip install pygame==2.5.2")

    def save_pictures(self, folder: Path) -> Iterator[str]:
        from dp.tasks.pusht.album import save_pictures

        recorded = ReplayBuffer.load(self.paths, ["state", "action", "noise"])
        yield f"pictures: {save_pictures(recorded, folder)}"

    @property
    def _image(self) -> Spec:
        return self.normalizer.specs.get("image", IMAGE)


def _check_specs(obs: Mapping[str, Spec], action: Spec) -> None:
    """Raises ValueError if `shape_meta` declares something else than PushT has."""
    low_dim = [name for name in obs if name != "image"]
    shapes = {name: array.shape[1:] for name, array in pusht.low_dim_obs(np.zeros((1, 5)), low_dim).items()}
    for name, shape in {**shapes, "action": (2,)}.items():
        spec = action if name == "action" else obs[name]
        if (spec.type, spec.shape) != ("low_dim", shape):
            raise ValueError(
                f"shape_meta: {name} is {spec.type} {list(spec.shape)}, but PushT's is low_dim {list(shape)}"
            )


def _check_pixels(buffer: ReplayBuffer, paths: Sequence[Path]) -> None:
    """Raises ValueError for positions in other units than pixels, which environment and mirror take them for."""
    action = buffer.arrays["action"]
    if np.abs(action).max() <= 2:
        raise ValueError(
            f"{', '.join(map(str, paths))}: actions range from {action.min():g} to {action.max():g}, but PushT's are "
            "pixels, 0-512. Scale positions in states and actions to pixels"
        )


def _locate_all(source: str, path: str | Sequence[str] | None) -> list[Path]:
    paths = path if isinstance(path, (list, tuple)) else [path]
    stores = [locate(source, None if one is None else str(one)) for one in paths]
    if not stores or len({store.resolve() for store in stores}) < len(stores):
        raise ValueError(f"dataset.path=[{','.join(map(str, paths))}], expected a store, or several different ones")
    return stores


def _with_mirror_images(buffer: ReplayBuffer) -> Episodes:
    """All episodes as they were recorded, and then all of them mirrored."""
    n = len(buffer)
    arrays = {name: np.concatenate([array, array]) for name, array in buffer.arrays.items()}
    for name, array in arrays.items():
        pusht.mirror(name, array[:n], out=array[n:])
    return Episodes(arrays, np.concatenate([buffer.episode_ends, buffer.episode_ends + n]))

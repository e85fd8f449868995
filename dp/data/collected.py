"""Demonstrations that a task makes itself, at first use."""

import logging
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from dp.data.demonstrations import Demonstrations, open_zarr
from dp.data.recording import DemonstrationStore
from dp.limits import EnvSeed, Positive, Seed
from dp.modalities import Spec
from dp.processes import N_CORES, in_processes
from dp.progress import Progress
from dp.tasks import Task

log = logging.getLogger(__name__)

FOLDER = Path("data")


def open_collected(
    task: Task,
    obs: Mapping[str, Spec],
    action: Spec,
    n_episodes: Positive = 50,
    start_seed: EnvSeed | None = None,
    path: str | list[str] | None = None,
    sha256: str | None = None,
    val_ratio: Annotated[float, Interval(ge=0, lt=1)] = 0.02,
    max_train_episodes: Positive | None = None,
    split_seed: Seed = 42,
) -> Demonstrations:
    """Demonstrations by `task.demonstrator`, from `FOLDER`, where they are made if they are missing.

    Args:
        n_episodes: to make.
        start_seed: of the first; the others follow. None: the task's first seed for demonstrations.
        path: of stores to read instead.
        sha256, val_ratio, max_train_episodes, split_seed: see `dp.data.open_zarr`.

    Raises:
        ValueError: for a task that has no demonstrator, and what `open_zarr` raises.
    """
    if path is None:
        path = str(_collect(task, n_episodes, task.demonstration_seeds[0] if start_seed is None else start_seed))
    return open_zarr(obs, action, path, sha256, val_ratio, max_train_episodes, split_seed)


def _collect(task: Task, n_episodes: int, start_seed: int) -> Path:
    """The store of the first `n_episodes` solved seeds from `start_seed` on. A store that was cut off is completed."""
    demonstrator = task.demonstrator
    if demonstrator is None:
        raise ValueError(
            f"the task {task.name} does not demonstrate itself: set dataset=zarr dataset.path=PATH to other "
            "demonstrations"
        )
    cameras = [name for name, spec in task.shape_meta["obs"].items() if spec["type"] == "rgb"]
    path = FOLDER / ("_".join([task.name, *cameras, str(n_episodes)]) + ".zarr")
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"demonstrator": repr(demonstrator), "start_seed": start_seed}
    with DemonstrationStore(path, settings, *task.columns()) as store:
        if store.n_episodes < n_episodes:
            log.info("%s: making %d demonstrations, once", path, n_episodes)
        first = start_seed if store.last_seed is None else store.last_seed + 1
        bar = Progress(total=n_episodes, initial=store.n_episodes, desc="demonstrations", unit="episode")
        with (
            closing(bar),
            closing(in_processes(demonstrator, range(first, task.demonstration_seeds.stop), N_CORES)) as made,
        ):
            while store.n_episodes < n_episodes:
                _, demonstration = next(made)
                if demonstration is not None:
                    store.append([demonstration], type(demonstrator).__name__.lower())
                    bar.update()
    return path

"""Demonstrations that a task makes itself, at first use."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from dp.data.demonstrations import Demonstrations
from dp.data.filling import fill
from dp.data.opening import open_zarr
from dp.data.recording import DemonstrationStore
from dp.limits import EnvSeed, Positive, Seed
from dp.modalities import Spec
from dp.processes import N_CORES, in_processes
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
        start_seed: of the first; the others follow. None: see `Task.first_seed`.
        path: of stores to read instead.
        sha256, val_ratio, max_train_episodes, split_seed: see `dp.data.open_zarr`.

    Raises:
        ValueError: for a task that has no demonstrator, and what `open_zarr` raises.
    """
    if path is None:
        path = str(_collect(task, n_episodes, start_seed))
    return open_zarr(obs, action, path, sha256, val_ratio, max_train_episodes, split_seed)


def _collect(task: Task, n_episodes: int, start_seed: int | None) -> Path:
    """The store of the first `n_episodes` solved seeds from `start_seed` on. A store that was cut off is completed."""
    demonstrator, seeds = task.demonstrator, task.demonstration_seeds
    if demonstrator is None:
        raise ValueError(
            f"the task {task.name} does not demonstrate itself: set dataset=zarr dataset.path=PATH to other "
            "demonstrations"
        )
    start_seed = task.first_seed(start_seed, "dataset.start_seed")
    own = {name: value for name, value in vars(demonstrator).items() if isinstance(value, int | float | str)}
    columns = [{name: [dtype, list(row)] for name, (dtype, row) in group.items()} for group in task.columns()]
    settings = {"task": task.demonstrated, "start_seed": start_seed, "columns": columns, "demonstrator": own}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    path = FOLDER / f"{task.name}_{n_episodes}_{digest}.zarr"
    path.parent.mkdir(parents=True, exist_ok=True)
    with DemonstrationStore(path, settings, *task.columns()) as store:
        if store.n_episodes < n_episodes:
            log.info("%s: making %d demonstrations, once", path, n_episodes)
            first = start_seed if store.last_seed is None else store.last_seed + 1
            made = in_processes(demonstrator, range(first, seeds.stop), N_CORES)
            fill(store, n_episodes, made, type(demonstrator).__name__.lower())
    return path

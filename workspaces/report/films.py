"""Films recorded episodes that have no video, by running their actions again, equal to the bit."""

import hashlib
import logging
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dp.processes import N_CORES, in_processes
from dp.progress import Progress
from dp.rollouts.runner import EpisodeResult
from dp.types import Env
from workspaces.foreign import read_arrays
from workspaces.report.runs import Run
from workspaces.rollouts import counted
from workspaces.video import write_video

log = logging.getLogger(__name__)

Films = dict[tuple[Path, int], Path]
"""(run directory, seed) -> video."""


MAX_FILMED = 50
"""Default of report.n_films: the worst episodes of an evaluation that are filmed. A video takes a second of one core,
and evaluations may have hundreds."""


class Take(NamedTuple):
    """An episode to film, in an environment that `make_env` makes."""

    make_env: Callable[[], Env]
    file: Path
    run: Path
    seed: int
    actions: np.ndarray
    max_reward: float


def film(runs: Iterable[Run], folder: Path, n_films: int = MAX_FILMED) -> Films:
    """Makes videos in `folder` of the `n_films` worst episodes of each run that have none, on all cores. Existing
    videos are kept.

    Left out are episodes of a task without an environment here, those whose actions are not known, and those that do
    not come out as they did: another version of the environment than the one they ran in.
    """
    takes = [take for run in runs for take in _takes(run, folder, n_films)]
    missing = {take.file: take for take in takes if not take.file.is_file()}
    strangers = set()
    if missing:
        log.info(
            "filming %s, of which there is no video: about a second each on one of %d cores. "
            "report.n_films=0 films none, report.n_films=5 the worst five of each evaluation",
            counted(len(missing), "episode"), N_CORES,
        )  # fmt: skip
        made = in_processes(_film, missing.values(), N_CORES)
        bar = Progress(made, total=len(missing), desc="filming", unit="episode", leave=False)
        strangers = {take.file for take, same in bar if not same}
    if strangers:
        episodes = counted(len(strangers), "episode")
        log.warning("no video of %s: another version of the environment runs differently", episodes)
    return {(take.run, take.seed): take.file for take in takes if take.file not in strangers}


def _takes(run: Run, folder: Path, n_films: int) -> list[Take]:
    worst = sorted(run.episodes, key=lambda row: row["max_reward"])[:n_films]
    wanted = {row["seed"]: row["max_reward"] for row in worst if run.video(row["seed"]) is None}
    make_env = run.task.make_env
    if not wanted or make_env is None or not run.actions.is_file():
        return []
    try:
        arrays, width = read_arrays(run.actions), run.task.shape_meta["action"]["shape"]
        actions = {seed: arrays[str(seed)] for seed in wanted}
        if any(a.dtype.kind != "f" or a.shape[1:] != (*width,) or not np.isfinite(a).all() for a in actions.values()):
            raise ValueError(f"expected finite actions of shape {width}")
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s): no videos of its episodes", run.actions, error)
        return []
    names = {seed: f"{seed}-{hashlib.sha256(array).hexdigest()[:16]}.mp4" for seed, array in actions.items()}
    return [
        Take(make_env, folder / names[seed], run.path, seed, actions[seed], reward) for seed, reward in wanted.items()
    ]


def _film(take: Take) -> bool:
    env = take.make_env()
    env.reset(take.seed)
    episode = EpisodeResult(take.seed, control_hz=env.control_hz, frames=[env.render()])
    for action in take.actions:
        env.step(action)
        episode.rewards.append(env.reward)
        episode.frames.append(env.render())
    if max(episode.rewards) != take.max_reward:
        return False
    write_video(take.file, episode)
    return True

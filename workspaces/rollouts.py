"""Rollout results as metrics and files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dp.files import write_atomically, write_json
from dp.intervals import Estimate
from dp.rollouts.episode import KICK_EVERY
from dp.rollouts.runner import RolloutResult
from workspaces.video import write_video


def metrics_of(test: RolloutResult, train: RolloutResult | None) -> dict[str, float]:
    """The numbers of a rollout, under their metric keys."""
    metrics: dict[str, float] = {}
    for name in ("score", "success", "length"):
        metrics |= named(f"rollout/{name}", getattr(test, name))
    for name, estimate in test.quantities().items():
        metrics |= named(f"rollout/final_{name}", estimate)
    if train is not None:
        metrics["rollout/train_score"] = train.score.value
    return metrics


def named(name: str, estimate: Estimate) -> dict[str, float]:
    """A value and its 95 % interval under their usual names, without unknown ones."""
    numbers = dict(zip((name, f"{name}_ci_low", f"{name}_ci_high"), estimate, strict=True))
    return {key: number for key, number in numbers.items() if not math.isnan(number)}


def estimate_of(metrics: Mapping[str, Any], name: str) -> Estimate:
    """The value and interval that `named` wrote; nan where it wrote nothing."""
    return Estimate(*(metrics.get(f"{name}{end}", math.nan) for end in ("", "_ci_low", "_ci_high")))


def text_of(estimate: Estimate, percent: bool = False, sign: bool = False) -> str:
    """0.975 [0.966, 0.982], or 45.8 % [41.5, 50.2]; a dash if it is undefined."""
    if math.isnan(estimate.value):
        return "–"
    scale, form = (100, ".1f") if percent else (1, ".3f")
    value, low, high = (f"{scale * x:{'+' if sign else ''}{form}}" for x in estimate)
    return f"{value}{' %' if percent else ''}{f' [{low}, {high}]' if estimate.bounded else ''}"


def counted(n: int, noun: str) -> str:
    """1 episode, 2 episodes."""
    return f"{n} {noun}{'s' if n != 1 else ''}"


def disturbances(kick: float, n_late: int) -> str:
    """Words for what makes a test harder than its protocol; empty if nothing does."""
    kicked = f"kick of {kick:g} every {KICK_EVERY} steps" if kick else ""
    return ", ".join(filter(None, [kicked, f"plans {n_late} steps late" if n_late else ""]))


def save_rollouts(run_dir: Path, step: int, test: RolloutResult, train: RolloutResult | None) -> dict[int, Path]:
    """Writes rollouts/<step>.json, and the files of `save_media`. Returns seed -> video."""
    rows = [e.row() for e in [*test.episodes, *(train.episodes if train else [])]]
    write_json(run_dir / "rollouts" / f"{step}.json", rows)
    return save_media(run_dir, step, test)


def save_media(run_dir: Path, step: int, result: RolloutResult) -> dict[int, Path]:
    """Writes the recorded episodes as media/<step>-<seed>.mp4, and rollouts/<step>.npz, from which the others can be
    filmed later: seed -> executed actions (T, 2) float32. Returns seed -> video."""
    actions = {str(e.seed): np.stack(e.actions) for e in result.episodes}
    write_atomically(run_dir / "rollouts" / f"{step}.npz", lambda file: np.savez_compressed(file, **actions))  # type: ignore[arg-type]
    videos = {e.seed: run_dir / "media" / f"{step}-{e.seed}.mp4" for e in result.episodes if e.frames}
    for episode in result.episodes:
        if episode.seed in videos:
            write_video(videos[episode.seed], episode)
    return videos

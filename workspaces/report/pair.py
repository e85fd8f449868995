"""Two results side by side, episode by episode: tables, a figure, and films."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dp.intervals import Difference
from workspaces.report.failure_map import MAX_VIDEO_BYTES, embedded
from workspaces.report.figures import GREY, INK, PALETTE, SIZE
from workspaces.report.tables import Comparison, Result, Table, differing, number, value_of

MAX_FILMS = 6
"""Most pairs of videos on a page."""

MAX_ROWS = 20
"""Most episodes in the table that people read. The CSV file has all of them."""


class Film(NamedTuple):
    """One episode that both sides have filmed: the best rewards, and the videos as sources of an element."""

    seed: int
    rewards: tuple[float, float]
    videos: tuple[str, str]


def common(result: Result, seeds: Sequence[int], key: str) -> np.ndarray:
    """Values of the episodes of `seeds`: (S, E)."""
    return result.values(key)[:, seeds[0] - result.protocol.first :][:, : len(seeds)]


def common_seeds(a: Result, b: Result) -> range:
    """Env seeds that both have."""
    return range(max(a.protocol.first, b.protocol.first), min(a.protocol.last, b.protocol.last) + 1)


def episodes_table(comparison: Comparison, seeds: Sequence[int]) -> Table:
    """One row per episode, the greatest difference first."""
    a, b = (common(side, seeds, "max_reward").mean(0) for side in (comparison.one, comparison.reference))
    frame = pd.DataFrame({"seed": seeds, "a": a, "b": b, "difference": a - b})
    frame = frame.iloc[np.argsort(-abs(a - b), kind="stable")]
    shown = frame.head(MAX_ROWS).assign(
        **{name: [number(value, 3) for value in frame[name].head(MAX_ROWS)] for name in ("a", "b", "difference")}
    )
    rest = f" The other {len(frame) - len(shown)} are in the CSV file." if len(frame) > len(shown) else ""
    note = f"Best rewards, averaged over the training seeds, where a and b differ most.{rest}"
    return Table("Episodes", frame, shown, note)


def settings_table(a: Result, b: Result) -> Table:
    """The keys in which the two policies differ, with their values."""
    of_a, of_b = differing(a.runs[0], b.runs[0])
    rows = [{"key": key.removesuffix("._target_"), "a": value_of(of_a[key]), "b": value_of(of_b[key])} for key in of_a]
    frame = pd.DataFrame(rows, columns=["key", "a", "b"])
    return Table("Settings that differ", frame, frame, "" if rows else "The recorded settings are the same.")


def episodes_figure(comparison: Comparison, seeds: Sequence[int], a: str, b: str) -> Figure:
    """Every episode at its best rewards under a and under b."""
    x, y = (common(side, seeds, "max_reward").mean(0) for side in (comparison.one, comparison.reference))
    figure = Figure(figsize=(SIZE[0], SIZE[0]))
    axes = figure.add_subplot()
    low, high = min(0.0, x.min(), y.min()), max(1.0, x.max(), y.max())
    margin = 0.04 * (high - low)
    axes.plot([low, high], [low, high], color=GREY, lw=1)
    axes.scatter(x, y, s=16, color=np.where(y > x, PALETTE[1], np.where(y < x, PALETTE[0], GREY)), alpha=0.6, lw=0)
    for place, n, colour in (((0.02, 0.97), (y > x).sum(), PALETTE[1]), ((0.98, 0.05), (y < x).sum(), PALETTE[0])):
        axes.text(*place, f"{n}", transform=axes.transAxes, color=colour, weight="bold", size=12, va="top",
                  ha="left" if place[0] < 0.5 else "right")  # fmt: skip
    limits = (low - margin, high + margin)
    axes.set(xlim=limits, ylim=limits, xlabel=f"best reward of a: {_cut(a)}", ylabel=f"best reward of b: {_cut(b)}")
    axes.set_aspect("equal")
    axes.set_title(f"{len(seeds)} episodes, {(x == y).sum()} of them equal", color=INK)
    return figure


def _cut(name: str) -> str:
    return name if len(name) <= 40 else f"…{name[-39:]}"


def films(comparison: Comparison, seeds: Sequence[int]) -> list[Film]:
    """Episodes that the first training seed of both has filmed, the greatest differences first."""
    a, b = comparison.one.runs[0], comparison.reference.runs[0]
    rewards = {row["seed"]: row["max_reward"] for row in a.episodes}
    other = {row["seed"]: row["max_reward"] for row in b.episodes}
    found: list[Film] = []
    left = MAX_VIDEO_BYTES
    for seed in sorted(seeds, key=lambda seed: -abs(rewards[seed] - other[seed])):
        files = a.video(seed), b.video(seed)
        if files[0] is None or files[1] is None or len(found) == MAX_FILMS:
            continue
        left -= sum(file.stat().st_size for file in files if file)
        if left < 0:
            break
        found.append(Film(seed, (rewards[seed], other[seed]), (embedded(files[0]), embedded(files[1]))))
    return found


def facts(comparison: Comparison, seeds: Sequence[int], names: tuple[str, str]) -> dict[str, Any]:
    """The content of compare.json. Differences are those of a minus b."""
    a, b = comparison.one, comparison.reference
    differences = {"score": comparison.score, "success": comparison.success}
    differences |= {name.replace(" ", "_"): difference for name, difference in comparison.quantities.items()}
    return {
        "a": _side(a, names[0]),
        "b": _side(b, names[1]),
        "protocol": {"task": a.protocol.task, "seeds": [seeds[0], seeds[-1]], "max_steps": a.protocol.max_steps}
        | ({"disturbances": a.protocol.disturbances} if a.protocol.disturbances else {}),
        "n_episodes": len(seeds),
        "differences": {name: _numbers(one) for name, one in differences.items()},
    }


def _side(side: Result, name: str) -> Mapping[str, Any]:
    paths = [str(run.path) for run in side.runs]
    return {"name": name, "runs": paths, "score": _or_none(side.score.value), "success": _or_none(side.success.value)}


def _numbers(difference: Difference) -> Mapping[str, float | None]:
    value, low, high, p = difference
    return {"difference": _or_none(value), "ci_low": _or_none(low), "ci_high": _or_none(high),
            "p_a_better": None if np.isnan(value) else p}  # fmt: skip


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value

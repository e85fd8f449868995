"""Figures of a report. Each function makes one matplotlib figure, small enough to be read on a phone."""

import io
import logging
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from operator import mul
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.rcsetup import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dp.tasks import Reference
from workspaces.report.runs import Protocol, Run
from workspaces.report.tables import (
    ACTION_ERROR,
    STEPS,
    Comparison,
    Result,
    Setting,
    label,
    labels,
    settings,
    short_labels,
    value_of,
)

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5195", "#6B6B6B")
"""Okabe & Ito (2008): told apart with any colour vision; yellow and black replaced, which vanish on white or black."""

INK, GREY, GRID = "#24292f", "#6e7781", "#e4e7eb"
SIZE, SMALL = (4.8, 3.3), (3.5, 2.5)

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 10, "axes.labelcolor": INK, "text.color": INK,
    "axes.edgecolor": GREY, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.prop_cycle": cycler(color=PALETTE), "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "lines.linewidth": 1.8, "legend.frameon": False, "legend.fontsize": 8, "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a name may hold a $
    "pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "dp",
    "savefig.transparent": True, "axes.facecolor": "none",
}  # fmt: skip


logging.getLogger("fontTools").setLevel(logging.WARNING)  # it reports every table of every font in a PDF

MAX_LABEL = 110
"""Longest name in a figure, in characters. Tables show it whole."""

SAME_PACE = 0.1
"""Two runs whose time per step differs by less than this share have one axis of minutes."""

LOG_FROM = 5
"""Ratio of the highest loss to the lowest from which on their axis is logarithmic. Below, it would have two ticks."""

DASHED = {"ls": (0, (3, 2)), "lw": 1.3}


@contextmanager
def style() -> Iterator[None]:
    """A context in which all figures are made and saved."""
    with mpl.rc_context(STYLE):
        yield


def svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, on white."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160, facecolor="white", transparent=False)
    return file.getvalue()


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF file, for a paper: text stays text."""
    file = io.BytesIO()
    figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    return file.getvalue()


def slug(task: str) -> str:
    """The name of a task in the names of files and in links."""
    return re.sub(r"[^\w.+-]+", "-", task).lstrip(".-") or "task"


def references(runs: Iterable[Run]) -> dict[str, Sequence[Reference]]:
    """Published scores by the name of the task."""
    return {run.protocol.task: run.task.references for run in runs}


def all_figures(
    trained: list[Run], unfinished: list[Run], results: list[Result], comparisons: list[Comparison]
) -> dict[str, Figure]:
    """Figures by name, for which these runs have data. Different tasks never share one."""
    figures: dict[str, Figure] = {}
    colours = palette(labels(trained), map(trained_as, results))
    known = references([*trained, *unfinished])
    tasks = sorted({run.protocol.task for run in [*trained, *unfinished]})
    for task in tasks:
        curves = [curve for curve in curves_of(trained, colours) if curve.run.protocol.task == task]
        curves += [curve for curve in _unfinished_curves(unfinished) if curve.run.protocol.task == task]
        figures |= _training_figures(curves, slug(task), known[task], task if len(tasks) > 1 else "")
    for task in dict.fromkeys(c.one.protocol.task for c in comparisons):
        own_comparisons = [c for c in comparisons if c.one.protocol.task == task]
        figures[f"paired-comparison-{slug(task)}"] = differences(own_comparisons)
    figures |= {f"heat-map-{i}": figure for i, figure in enumerate(heat_maps(results), 1)}
    figures |= {f"latency-{i}": figure for i, figure in enumerate(_latencies(results, colours), 1)}
    return figures


def _training_figures(curves: list["Curve"], task: str, lines: Sequence[Reference], title: str) -> dict[str, Figure]:
    """The curves of one task."""
    figures: dict[str, Figure] = {}
    if any(curve.of("rollout/score")[0] for curve in curves):
        figures[f"learning-curve-{task}"] = learning_curve(curves, lines, title)
    for key in LOSSES:
        if any(curve.of(key)[0] for curve in curves):
            name = f"{key.replace('/', '-').replace('_', '-')}-{task}"
            figures[name] = loss_curve(curves, key, title)
    return figures


LOSSES = {
    ACTION_ERROR: "Validation action error",
    "train/loss": "Training loss",
    "val/loss": "Validation loss",
}


class Curve(NamedTuple):
    """A training in the plots, with the same name and look in all of them."""

    run: Run
    name: str
    colour: str

    def of(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values."""
        points = self.run.curve(key)
        return list(points), list(points.values())

    def series(self, key: str) -> pd.Series:
        """Values over steps."""
        steps, values = self.of(key)
        return pd.Series(values, steps, float)

    @property
    def minutes_per_step(self) -> float:
        """Minutes of training per step; nan if no time was logged."""
        steps, seconds = self.of("time/training_s")
        return seconds[-1] / steps[-1] / 60 if steps and steps[-1] else np.nan


def palette(*groups: Iterable[str]) -> dict[str, str]:
    """A colour for each name, the same in all figures, group by group; horizon=8 comes before horizon=10."""

    def numeric(name: str) -> list[str]:
        return [part.zfill(12) for part in re.split(r"(\d+)", name)]

    ordered = dict.fromkeys(name for names in groups for name in sorted(set(names), key=numeric))
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(ordered)}


def curves_of(trained: list[Run], colours: dict[str, str]) -> list[Curve]:
    """Finished trainings: a colour for each setting, in the order of the colours, and its shortest name in its task."""
    names = labels(trained)
    shown = dict(zip(names, names, strict=True))
    for task in {run.protocol.task for run in trained}:
        own = {name: s for run, name, s in zip(trained, names, settings(trained), strict=True)
               if run.protocol.task == task}  # fmt: skip
        shown |= dict(zip(own, map(_brief, short_labels([*own.values()])), strict=True))
    ordered = sorted(zip(trained, names, strict=True), key=lambda pair: [*colours].index(pair[1]))
    return [Curve(run, shown[name] or name, colours[name]) for run, name in ordered]


def _brief(name: str) -> str:
    """At most two lines of a legend."""
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"


def _unfinished_curves(runs: list[Run]) -> list[Curve]:
    """Curves of unfinished trainings: one colour per run, from the palette's end."""
    made = [
        Curve(run, f"{_brief(run.path.name)}: {run.state}", PALETTE[-1 - i % len(PALETTE)])
        for i, run in enumerate(runs)
    ]
    return [curve for curve in made if curve.of("train/loss")[0]]


def learning_curve(curves: list[Curve], lines: Sequence[Reference], task: str) -> Figure:
    """Score of the rollouts over steps, with its intervals, and with published scores to compare with."""
    figure = Figure(figsize=SIZE)
    axes = figure.add_subplot()
    _draw_curves(axes, curves, "rollout/score")
    scores = [score for curve in curves for score in curve.of("rollout/score")[1]]
    if all(0 <= score <= 1 for score in [*scores, *(line.score for line in lines)]):
        axes.set_ylim(0, 1.02)
    for reference in lines:
        axes.axhline(reference.score, color=GREY, ls=reference.line, lw=1.1, zorder=1)
    axes.set(title=_titled("Score of the rollouts", task), ylabel="score", xlabel="training step")
    axes.xaxis.set_major_locator(_round_steps())
    _minutes_axis(axes, curves)
    _legend(figure, axes, lines)
    return figure


def _minutes_axis(axes: Axes, curves: list[Curve]) -> None:
    """Adds an axis of minutes above, if all runs took about as long per step."""
    paces = np.array([curve.minutes_per_step for curve in curves])
    pace = float(paces.mean())
    if pace > 0 and (abs(paces / pace - 1) < SAME_PACE).all():
        top = axes.secondary_xaxis("top", functions=(partial(mul, pace), partial(mul, 1 / pace)))
        top.set_xlabel("minutes of training")
        top.tick_params(length=0)
        top.spines["top"].set_visible(False)


def loss_curve(curves: list[Curve], key: str, task: str) -> Figure:
    """One of `LOSSES` over steps."""
    figure = Figure(figsize=SMALL)
    axes = figure.add_subplot()
    _draw_curves(axes, curves, key)
    axes.set(title=_titled(LOSSES[key], task, SMALL[0]), xlabel="training step")
    axes.xaxis.set_major_locator(_round_steps())
    values = [value for curve in curves for value in curve.of(key)[1] if value > 0]
    if max(values, default=1) > LOG_FROM * min(values, default=1):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    _legend(figure, axes)
    return figure


def _round_steps() -> MaxNLocator:
    return MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10])


def _titled(title: str, more: str, width: float = SIZE[0]) -> str:
    """A title and, below it, a subtitle in lines that fit a figure of `width` inches."""
    return "\n".join([title, *textwrap.wrap(_brief(more), int(8.5 * width))])


def _draw_curves(axes: Axes, curves: list[Curve], key: str) -> None:
    """Draws thin lines for seeds and a thick one for their mean. Unfinished runs are dashed and in no mean.

    If intervals were recorded, their mean over the seeds is shaded.
    """
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.name, curve.colour), []).append(curve)
    for (name, colour), group in groups.items():
        lines = [line for curve in group if len(line := curve.series(key))]
        for line in lines if len(lines) > 1 else []:
            axes.plot(line.index, line, color=colour, lw=0.9, alpha=0.45)
        if lines:
            mean = _mean_curve(lines)
            low, high = (_mean_curve([curve.series(f"{key}_ci_{end}") for curve in group]) for end in ("low", "high"))
            if len(low):
                axes.fill_between(low.index, low.to_numpy(), high.to_numpy(), color=colour, alpha=0.14, lw=0)
            text = f"{name} ({len(lines)} seeds)" if len(lines) > 1 else name
            look = {"marker": "o" if len(mean) < 25 else "", "ms": 3} if group[0].run.state == "finished" else DASHED
            axes.plot(mean.index, mean, color=colour, label=text, **look)


def _mean_curve(curves: list[pd.Series]) -> pd.Series:
    """The mean over seeds, at steps for which every seed has a value."""
    return pd.concat(curves, axis=1, join="inner").mean(axis=1)


def _legend(figure: Figure, axes: Axes, lines: Sequence[Reference] = ()) -> None:
    """Adds a legend of the curves and the grey lines below the axes."""
    handles, labels = axes.get_legend_handles_labels()
    names = [f"{line.name}: {line.score:g} on {line.protocol}" for line in lines]
    greys = [Line2D([], [], color=GREY, ls=line.line, lw=1.1) for line in lines]
    handles, labels = [*handles[:16], *greys], [*labels[:16], *names]
    if labels:
        per_line = int(12 * figure.get_figwidth())  # characters that fit next to a handle
        columns = 2 if max(map(len, labels)) < per_line // 2 - 4 else 1
        wrapped = [textwrap.fill(text, per_line) for text in labels]
        n_lines = sum(text.count("\n") + 1 for text in wrapped) / columns
        figure.set_figheight(figure.get_figheight() + 0.15 * max(0, n_lines - 2))
        figure.legend(handles, wrapped, loc="outside lower left", ncols=columns)


def differences(comparisons: list[Comparison]) -> Figure:
    """Differences in score with their intervals, one per line."""
    one_reference = len({id(c.reference) for c in comparisons}) == 1
    sides = [c.one for c in comparisons] + [c.reference for c in comparisons]
    short = [
        _brief(text or side.label) for text, side in zip(short_labels([s.setting for s in sides]), sides, strict=True)
    ]
    ones, others = short[: len(comparisons)], short[len(comparisons) :]
    pairs = [[one] if one_reference else [one, f"minus {other}"] for one, other in zip(ones, others, strict=True)]
    names = ["\n".join(textwrap.fill(name, 30) for name in pair) for pair in pairs]
    below = f"score minus that of {others[0]}" if one_reference else "difference in score"
    n_lines = sum(name.count("\n") + 1 for name in names)
    figure = Figure(figsize=(SIZE[0], 1.4 + 0.14 * len(names) + 0.13 * n_lines))
    axes = figure.add_subplot()
    for y, c in enumerate(comparisons):
        clear = c.score.low > 0 or c.score.high < 0
        colour = PALETTE[0] if clear and c.score.value > 0 else PALETTE[1] if clear else GREY
        axes.plot([c.score.low, c.score.high], [y, y], color=colour, lw=2.2, solid_capstyle="round")
        axes.plot(c.score.value, y, "o", color=colour, ms=6)
    axes.axvline(0, color=INK, lw=1)
    axes.set(ylim=(len(comparisons) - 0.4, -0.6))
    figure.suptitle("Difference in score, with its 95 % interval", x=0.02, ha="left", size=10, weight="bold")
    figure.supxlabel(textwrap.fill(below, 64), size=9)  # centred under the figure: the axes are narrow
    axes.set_yticks(range(len(comparisons)), names, fontsize=7.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure


def heat_maps(results: list[Result]) -> Iterator[Figure]:
    """Score over horizon and inference steps, one figure per combination of the other settings."""
    results = [r for r in results if r.setting.get("horizon") is not None and r.setting.get(STEPS) is not None]
    groups: dict[tuple[str, Protocol], list[Result]] = {}
    for result in results:
        groups.setdefault((label(_without(result.setting, "horizon", STEPS)), result.protocol), []).append(result)
    for (rest, protocol), group in groups.items():
        if len({r.setting["horizon"] for r in group}) > 1 and len({r.setting[STEPS] for r in group}) > 1:
            yield _heat_map(group, f"{protocol}" + (f", {rest}" if rest else ""))


def _heat_map(results: list[Result], title: str) -> Figure:
    rows = sorted({r.setting["horizon"] for r in results})
    columns = sorted({r.setting[STEPS] for r in results})
    grid = np.full((len(rows), len(columns)), np.nan)
    figure = Figure(figsize=(SIZE[0], 1.4 + 0.55 * len(rows)))
    axes = figure.add_subplot()
    for result in results:
        grid[rows.index(result.setting["horizon"]), columns.index(result.setting[STEPS])] = result.score.value
    axes.imshow(grid, cmap="cividis", aspect="auto")
    # Write score and interval into each cell, in a colour that stands out.
    for result in results:
        y, x = rows.index(result.setting["horizon"]), columns.index(result.setting[STEPS])
        score = result.score
        colour = "white" if score.value < (np.nanmin(grid) + np.nanmax(grid)) / 2 else "black"
        look: dict[str, Any] = {"ha": "center", "va": "center", "color": colour}
        above = 0.12 if score.bounded else 0.0
        axes.text(x, y - above, f"{score.value:.3f}", weight="bold", fontsize=10, **look)
        if score.bounded:
            bounds = f"[{score.low:.2f}, {score.high:.2f}]"
            axes.text(x, y + 0.2, bounds, size=7.5, **look)
    axes.set(title=_titled("Score", title), xlabel="inference steps", ylabel="horizon")
    axes.set(xticks=range(len(columns)), yticks=range(len(rows)), xticklabels=columns, yticklabels=rows)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _latencies(results: list[Result], colours: dict[str, str]) -> Iterator[Figure]:
    for protocol in dict.fromkeys(r.protocol for r in results):
        timed = [r for r in results if r.protocol == protocol and np.isfinite(r.inference_ms)]
        if len(timed) > 1:
            yield latency(timed, colours)


def pareto_front(results: Sequence[Result]) -> list[Result]:
    """The results that no other one beats in both score and latency, fastest first."""
    front: list[Result] = []
    for result in sorted(results, key=lambda r: (r.inference_ms, -r.score.value)):
        if not front or result.score.value > front[-1].score.value:
            front.append(result)
    return front


def latency(results: list[Result], colours: dict[str, str]) -> Figure:
    """Score against the time that one action chunk takes, with the Pareto front."""
    figure = Figure(figsize=SIZE)
    axes = figure.add_subplot()
    front = pareto_front(results)
    for result in results:
        on_front = any(result is other for other in front)
        score, colour = result.score, colours[trained_as(result)]
        axes.errorbar(
            result.inference_ms, score.value, [[score.value - score.low], [score.high - score.value]],
            fmt="o", color=colour, mfc=colour if on_front else "white", ms=6, elinewidth=1.1, capsize=2,
        )  # fmt: skip
    ways = {trained_as(result): _without(result.setting, STEPS) for result in results}
    for name in ways:  # a thin line through the results of one policy
        of_it = sorted((r.inference_ms, r.score.value) for r in results if trained_as(r) == name)
        axes.plot(*zip(*of_it, strict=True), color=colours[name], lw=0.8, zorder=1)
    for name, text in zip(ways, short_labels([*ways.values()]), strict=True):
        axes.plot([], [], "o", color=colours[name], label=_brief(text or name))
    x, y = [r.inference_ms for r in front], [r.score.value for r in front]
    axes.step(x, y, where="post", color=INK, lw=1.1, ls="--", zorder=1, label="Pareto front (filled)")
    # Latencies that span an order of magnitude need a logarithmic axis.
    ratio = max(r.inference_ms for r in results) / max(min(r.inference_ms for r in results), 1e-9)
    if ratio > 8:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if ratio < 200 else (1,)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12)
    _number(axes, [r for r in results if STEPS in r.setting])
    axes.set(title=_titled("Score against latency", f"{results[0].protocol}"), ylabel="score")
    axes.set(xlabel="milliseconds per action chunk, one observation")
    _legend(figure, axes)
    return figure


def _number(axes: Axes, results: list[Result]) -> None:
    """Writes the inference steps beside each point, where no other number or point is, if there is such a place."""
    points = axes.transData.transform([(r.inference_ms, r.score.value) for r in results])
    taken = [(x - 4, x + 4, y - 4, y + 4) for x, y in points]
    for result, (x, y) in zip(results, points, strict=True):
        text = value_of(result.setting[STEPS])
        width = 6.0 * len(text)
        places: list[tuple[int, int, tuple[float, float], tuple[float, float, float, float]]] = []
        for across, up in ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1)):
            middle = x + across * (7 + width / 2), y + up * (9 if across == 0 else 6)
            box = (middle[0] - width / 2, middle[0] + width / 2, middle[1] - 4, middle[1] + 4)
            hits = sum(box[0] < b[1] and b[0] < box[1] and box[2] < b[3] and b[2] < box[3] for b in taken)
            places.append((hits, len(places), middle, box))
        _, _, middle, box = min(places)
        taken.append(box)
        at = axes.transData.inverted().transform(middle)
        axes.text(at[0], at[1], text, size=7, ha="center", va="center")


def trained_as(result: Result) -> str:
    """The setting without the inference steps."""
    return label(_without(result.setting, STEPS)) or result.runs[0].config["name"]


def _without(setting: Setting, *keys: str) -> Setting:
    return {key: value for key, value in setting.items() if key not in keys}

"""The page, and each table as CSV, Markdown and LaTeX."""

import base64
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from dp.tasks import Reference
from workspaces import command, record
from workspaces.report.failure_map import OUTCOMES, SCALE, Sheet
from workspaces.report.figures import slug
from workspaces.report.pair import Film
from workspaces.report.recipe import Recipe
from workspaces.report.runs import Run
from workspaces.report.tables import (
    ACTION_ERROR,
    Comparison,
    Result,
    Table,
    difference,
    interval,
    labels,
    number,
    probability,
)

NUMBER = re.compile(r"[−+<> ]*[\d.–]+( %)?( \[.*\])?( / \d+)?")

SIGNED = re.compile(r"[-+]?\d[\d.]*(e[-+]?\d+)?", re.IGNORECASE)

CAPTIONS = {
    "learning-curve": "Mean over training seeds (thick) and each seed (thin). Shaded: 95 % interval over the episodes, "
    "averaged over the seeds. Dashed: not finished. Minutes are those of training steps alone.",
    "train-loss": "Mean since the last log. Dashed: not finished.",
    "val-loss": "EMA policy on held-out episodes, with the same noise every time.",
    "val-action-mse": "Squared error of sampled actions on held-out episodes, in normalised units.",
    "paired-comparison": "Blue: better, orange: worse, grey: the interval includes 0.",
    "episodes": "Each point is an episode, averaged over the training seeds. Above the line b did better. The numbers "
    "in the corners count the episodes on either side.",
    "heat-map": "Score and its 95 % interval.",
    "latency": "Bars are 95 % intervals of the score. Filled points are on the front: no other is both faster and "
    "better. A number at a point is that of its inference steps. Latency depends on the machine of the evaluation and "
    "on what else it did: compare evaluations on a quiet one.",
}
PUBLISHED = "Grey lines are published scores. Compare them only with what was measured under the same protocol."


def render(
    title: str,
    runs: Path,
    results: list[Result],
    trained: list[Run],
    tables: dict[str, Table],
    figures: dict[str, tuple[str, bytes]],
    references: Mapping[str, Sequence[Reference]],
    sheets: list[Sheet],
    not_shown: list[str],
    recipes: list[Recipe],
) -> str:
    """The whole page: text, styles, plots (SVG) and videos in one file that needs no network."""
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            runs=runs,
            command=command.run("workspace=report", command.override("runs", runs)),
            made=_now(),
            commit=record.commit(),
            best=_best(results),
            best_errors=_best_errors(trained),
            several_tasks=len({run.protocol.task for run in trained} | {r.protocol.task for r in results}) > 1,
            tables={name: _table(name, table) for name, table in tables.items()},
            figures=_figures(figures, references),
            references={task: lines for task, lines in references.items() if lines},
            sheets=sheets,
            not_shown=not_shown,
            recipes=recipes,
            outcomes=OUTCOMES,
            scale=SCALE,
            successes=_distinct((sheet.run.words.success, sheet.run.protocol.task) for sheet in sheets if sheet.judged),
            near_misses=_distinct((sheet.run.task.near_miss, sheet.run.protocol.task) for sheet in sheets),
            starts=list(dict.fromkeys(sheet.starts for sheet in sheets if sheet.starts)),
        )
    )


def render_comparison(
    a: str,
    b: str,
    protocol: str,
    seeds: str,
    comparison: Comparison,
    tables: dict[str, Table],
    figures: dict[str, tuple[str, bytes]],
    films: Sequence[Film],
    command_line: str,
) -> str:
    """The page of `workspace=compare`, in one file that needs no network."""
    return _environment().get_template("comparison.html.j2").render(
        title=f"{a} against {b}",
        a=a,
        b=b,
        protocol=protocol,
        seeds=seeds,
        command=command_line,
        made=_now(),
        commit=record.commit(),
        score=comparison.score,
        success=comparison.success,
        judged=not np.isnan(comparison.success.value),
        n_episodes=comparison.n_episodes,
        privileged=[name for name, side in ((a, comparison.one), (b, comparison.reference)) if side.runs[0].privileged],
        tables={name: _table(name, table) for name, table in tables.items()},
        figures=_figures(figures, {}),
        films=films,
        outcomes=OUTCOMES,
    )  # fmt: skip


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {
        "interval": interval, "number": number, "probability": probability, "difference": difference
    }  # fmt: skip
    return environment


def _now() -> str:
    return datetime.now().astimezone().strftime("%d %B %Y, %H:%M")


def _figures(
    figures: dict[str, tuple[str, bytes]], references: Mapping[str, Sequence[Reference]]
) -> dict[str, dict[str, str]]:
    """Name -> (SVG, PDF), as the templates show them."""
    return {
        name: {
            "src": _data(svg.encode(), "image/svg+xml"),
            "pdf": _data(pdf, "application/pdf"),
            "caption": _caption(name, references),
        }
        for name, (svg, pdf) in figures.items()
    }


def csv(table: Table) -> bytes:
    """The table as CSV with unrounded numbers. An apostrophe quotes texts that a spreadsheet would compute."""
    frame = table.frame.map(_no_formula).rename(columns=_no_formula)
    return frame.to_csv(index=False).encode()


def _no_formula(value: object) -> object:
    """`value`, unless it is a text that a spreadsheet takes for a formula. A negative number is none."""
    formula = isinstance(value, str) and value[:1] in tuple("=+-@\t\r") and not SIGNED.fullmatch(value)
    return f"'{value}" if formula else value


def markdown(table: Table) -> bytes:
    """The table as people read it, in Markdown, with its note below."""
    shown = table.shown.astype(str).rename(columns=_markdown_cell).map(_markdown_cell)
    return f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n{table.note}\n".encode()


def _markdown_cell(text: str) -> str:
    """`text` on one line, escaped so that it neither ends a cell nor begins an HTML element."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def latex(table: Table) -> bytes:
    """The table as people read it: a booktabs tabular for pdfLaTeX, XeLaTeX and LuaLaTeX. The note is a comment."""
    shown = table.shown.astype(str)
    numeric = ["r" if all(NUMBER.fullmatch(text) for text in shown[column]) else "l" for column in shown]
    shown = shown.rename(columns=_latex_text).map(_latex_text)
    rows = [" & ".join(row) + r" \\" for row in [shown.columns, *shown.itertuples(index=False)]]
    lines = [r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule"]
    note = f"% {' '.join(table.note.split())}\n% Needs \\usepackage{{booktabs}}.\n"
    body = "\n".join([rf"\begin{{tabular}}{{{''.join(numeric)}}}", *lines, r"\end{tabular}"])
    return f"{note}{body}\n".encode()


LATEX = {character: rf"\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$",
    "−": "$-$", "×": r"$\times$", "†": r"\dag{}", "‡": r"\ddag{}", "–": "--", "…": r"\dots{}",
}  # fmt: skip
"""Escapes of LaTeX's special characters, and of those that pdfLaTeX's fonts lack."""


def _latex_text(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


class Format(NamedTuple):
    """A kind of file for a table: its name for people, its media type, and what writes it."""

    name: str
    kind: str
    write: Callable[[Table], bytes]


FORMATS = {
    "csv": Format("CSV", "text/csv", csv),
    "md": Format("Markdown", "text/markdown", markdown),
    "tex": Format("LaTeX", "application/x-tex", latex),
}
"""Formats by the suffix of the file."""


def _best(results: list[Result]) -> list[Result]:
    """The best result of each protocol."""
    return [max((r for r in results if r.protocol == p), key=lambda r: r.score.value)
            for p in dict.fromkeys(r.protocol for r in results)]  # fmt: skip


def _best_errors(trained: list[Run]) -> list[tuple[str, float, str]]:
    """(task, lowest validation action error of a training, its name) of each task that has no scores."""
    named = list(zip(trained, labels(trained), strict=True))
    best = []
    for task in dict.fromkeys(run.protocol.task for run in trained):
        own = [(run, name) for run, name in named if run.protocol.task == task]
        errors = [(min(curve.values()), name) for run, name in own if (curve := run.curve(ACTION_ERROR))]
        if errors and not any(run.curve("rollout/score") for run, _ in own):
            best.append((task, *min(errors)))
    return best


def _distinct(pairs: Iterable[tuple[Any, str]]) -> dict[Any, str]:
    """Statement -> the tasks that make it, without None. The names are empty if all tasks agree."""
    said: dict[Any, list[str]] = {}
    for words, task in dict.fromkeys(pairs):
        said.setdefault(words, []).append(task)
    names = {words: ", ".join(tasks) if len(said) > 1 else "" for words, tasks in said.items()}
    return {words: tasks for words, tasks in names.items() if words is not None}


def _table(name: str, table: Table) -> dict[str, Any]:
    """The fields of a table that the template needs."""
    shown = table.shown.astype(str)
    numeric = [all(NUMBER.fullmatch(text) for text in shown[column]) for column in shown]
    return {
        "title": table.title,
        "note": table.note,
        "columns": list(zip(shown.columns, numeric, strict=True)),
        "rows": [list(zip(row, numeric, strict=True)) for row in shown.itertuples(index=False)],
        "files": [
            (f"{name}.{ending}", form.name, _data(form.write(table), form.kind)) for ending, form in FORMATS.items()
        ],
    }


def _caption(name: str, references: Mapping[str, Sequence[Reference]]) -> str:
    caption = next((text for start, text in CAPTIONS.items() if name.startswith(start)), "")
    published = any(name == f"learning-curve-{slug(task)}" for task, lines in references.items() if lines)
    return f"{caption} {PUBLISHED}" if published else caption


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

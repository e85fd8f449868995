"""The page, and each table as CSV and Markdown."""

import base64
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from workspaces import record
from workspaces.report.atlas import NEAR, OUTCOMES, Sheet
from workspaces.report.figures import Reference
from workspaces.report.recipe import Recipe
from workspaces.report.tables import Result, Table, interval

NUMBER = re.compile(r"[−+<> ]*[\d.–]+( %)?( \[.*\])?( / \d+)?")

CAPTIONS = {
    "learning-curve-image-minutes": "The same over the time spent in training steps, without validation and rollouts.",
    "learning-curve-state-minutes": "The same over the time spent in training steps, without validation and rollouts.",
    "learning-curve": "Mean over training seeds (thick) and each seed (thin). Grey lines are published scores, each "
    "with its own protocol: compare with them only what was measured the same way. Dashed: not finished.",
    "train-loss": "Mean since the last log. Colours as above; dashed: not finished.",
    "val-loss": "EMA policy on held-out episodes, with the same noise every time.",
    "val-action-mse": "Squared error of sampled actions on held-out episodes, in normalised units.",
    "paired-comparison": "Blue: better, orange: worse, grey: the interval holds 0.",
    "heat-map": "Score and its 95 % interval.",
    "latency": "Bars are 95 % intervals of the score. Filled points are on the front: no other is both faster and "
    "better. Numbers are inference steps. Latency is that of the machine the evaluation ran on.",
}


def render(
    title: str,
    runs: Path,
    results: list[Result],
    tables: dict[str, Table],
    figures: dict[str, str],
    references: list[Reference],
    sheets: list[Sheet],
    not_shown: list[str],
    recipes: list[Recipe],
) -> str:
    """The whole page: text, styles, plots (SVG) and videos in one file that asks nobody for anything."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["interval"] = interval
    return environment.get_template("page.html.j2").render(
        title=title,
        runs=runs,
        made=datetime.now().astimezone().strftime("%d %B %Y, %H:%M"),
        commit=record.commit(),
        best=_best(results),
        tables={name: _table(name, table) for name, table in tables.items()},
        figures={
            name: {"src": _data(svg.encode(), "image/svg+xml"), "caption": _caption(name)}
            for name, svg in figures.items()
        },
        references=references,
        sheets=sheets,
        not_shown=not_shown,
        recipes=recipes,
        outcomes=OUTCOMES,
        near=NEAR,
    )


def csv(table: Table) -> bytes:
    """Plain numbers, not rounded."""
    return table.frame.to_csv(index=False).encode()


def markdown(table: Table) -> bytes:
    """As people read it, with the note below."""
    body = table.shown.to_markdown(index=False, disable_numparse=True)
    return f"{body}\n\n{table.note}\n".encode()


def _best(results: list[Result]) -> list[Result]:
    """Of each protocol."""
    return [max((r for r in results if r.protocol == p), key=lambda r: r.score.value)
            for p in dict.fromkeys(r.protocol for r in results)]  # fmt: skip


def _table(name: str, table: Table) -> dict[str, Any]:
    """What the template needs of it."""
    shown = table.shown.astype(str)
    numeric = [all(NUMBER.fullmatch(text) for text in shown[column]) for column in shown]
    return {
        "title": table.title,
        "note": table.note,
        "columns": list(zip(shown.columns, numeric, strict=True)),
        "rows": [list(zip(row, numeric, strict=True)) for row in shown.itertuples(index=False)],
        "files": [
            (f"{name}.csv", "CSV", _data(csv(table), "text/csv")),
            (f"{name}.md", "Markdown", _data(markdown(table), "text/markdown")),
        ],
    }


def _caption(name: str) -> str:
    return next((text for start, text in CAPTIONS.items() if name.startswith(start)), "")


def _data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"

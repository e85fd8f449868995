"""Tables, plots and one HTML page over a run, a directory of runs or a sweep, from their files alone."""

import logging
from pathlib import Path

import pandas as pd

from dp.files import write_bytes
from workspaces import build
from workspaces.base import Config, Workspace
from workspaces.foreign import check_inside
from workspaces.report import failure_map, figures, page, recipe, rounds, runs, tables
from workspaces.report.publish import publish

log = logging.getLogger(__name__)

MISSING = "???"
"""Hydra's mark for a missing value."""


class ReportWorkspace(Workspace):
    """Writes report.html, tables (CSV, Markdown, LaTeX) and figures (PNG, PDF) into `run_dir`, or else into
    <runs>/report.

    Raises ValueError if `runs` is not given or holds no run, or if the baseline is not one of the settings.

    After `run`, `tables` (name -> frame of plain numbers), `figures` (name -> PNG file) and `html` hold the results.
    """

    computes = False

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config["runs"] in (MISSING, None):
            raise ValueError("set runs=DIR: a run directory, a directory of runs, or a sweep under multirun/")
        self.runs = Path(config["runs"])
        self.baseline: dict[str, object] | None = config["report"]["baseline"]
        if not isinstance(self.baseline, (dict, type(None))):
            raise ValueError(
                f"report.baseline={self.baseline}, expected keys and values, such as 'report.baseline={{horizon: 16}}'"
            )
        self.run_dir = Path(config["run_dir"] or self.runs / "report")
        self.html = self.run_dir / "report.html"
        self.tables: dict[str, pd.DataFrame] = {}
        self.figures: dict[str, Path] = {}

    def run(self) -> None:
        """Makes all results before it writes any file."""
        check_inside(self.run_dir)
        trusted = self.config.get("trust") or ()
        log.info("reading the runs in %s", self.runs)
        found = runs.find(self.runs, trusted)
        counted = tables.count(found)
        trained = [run for run in found.finished if run.verb == "train"]
        results = tables.results(counted)
        comparisons = tables.compare(results, self.baseline)
        its_rounds = rounds.find(found.finished)
        made = {"rounds": rounds.table(its_rounds)} if its_rounds else {}
        made |= _tables(found, counted, trained, results, comparisons, self.baseline, self.runs)
        with figures.style():
            drawn = figures.all_figures(trained, found.unfinished, results, comparisons)
            if its_rounds:
                drawn["rounds"] = rounds.figure(its_rounds)
            svgs = {name: figures.svg(figure) for name, figure in drawn.items()}
            files = {
                f"figures/{name}.{kind}": save(figure)
                for name, figure in drawn.items()
                for kind, save in (("png", figures.png), ("pdf", figures.pdf))
            }
            sheets = failure_map.sheets(results, self.run_dir, trusted, self.config["report"]["n_films"])
        html = page.render(
            title=self.runs.resolve().name,
            runs=self.runs,
            results=results,
            trained=trained,
            tables=made,
            figures={name: (svg, files[f"figures/{name}.pdf"]) for name, svg in svgs.items()},
            references=figures.references(trained),
            sheets=sheets,
            not_shown=[r.label for r in failure_map.best_of(results)[failure_map.MAX_SETTINGS :]],
            recipes=recipe.recipes(found.finished),
        )
        self.figures = {name: self.run_dir / "figures" / f"{name}.png" for name in drawn}
        self._write(made, files, html)
        self._log(counted, results)
        log.info("runs that count: %d, directories left out: %d", len(counted), len(found.left_out))
        log.info("%s", self.html)

    def _log(self, counted: list[runs.Run], results: list[tables.Result]) -> None:
        """Logs the report to the wandb project of the runs, in their group if they share one."""
        settings = [run.config.get("logger") or {"mode": "disabled"} for run in counted]  # baselines have no training
        loggers = [logger for logger in settings if logger.get("mode") != "disabled"]
        groups = {logger.get("group") for logger in loggers}
        group = groups.pop() if len(groups) == 1 else None
        if loggers:
            self.config["logger"]["group"] = group
            self.config["name"] = "report"
            logger = build.logger(self.config, self, "report")
            logger.log_report(self.tables, self.figures, self.html)
            logger.close(failed=False)
        if self.config["report"]["publish"] == "wandb":
            if group is None:
                raise ValueError("report.publish=wandb needs runs of one wandb group: a sweep's, or logger.group=NAME")
            seeds = {row["seed"] for run in counted for row in run.episodes if run.video(row["seed"])}
            keys = results[0].setting if results else {}
            quantities = list(dict.fromkeys(key for result in results for key in result.quantities))
            project = self.config["logger"]["project"]
            publish(self.run_dir / "dashboard.json", project, group, keys, seeds, quantities)

    def _write(self, made: dict[str, tables.Table], files: dict[str, bytes], html: str) -> None:
        """Writes each file whole or not at all, the page last, and deletes leftovers of an earlier report."""
        for name, table in made.items():
            files |= {f"tables/{name}.{kind}": page.FORMATS[kind].write(table) for kind in page.FORMATS}
        for name, content in {**files, "report.html": html.encode()}.items():
            write_bytes(self.run_dir / name, content)
        for kind in ("figures/*.png", "figures/*.pdf", *(f"tables/*.{kind}" for kind in page.FORMATS)):
            for path in self.run_dir.glob(kind):
                if str(path.relative_to(self.run_dir)) not in files:
                    path.unlink()
        self.tables = {name: table.frame for name, table in made.items()}


def _tables(
    found: runs.Found,
    counted: list[runs.Run],
    trained: list[runs.Run],
    results: list[tables.Result],
    comparisons: list[tables.Comparison],
    baseline: object,
    root: Path,
) -> dict[str, tables.Table]:
    """Tables by name, in the page's order, without empty ones."""
    by_directory: dict[object, runs.Run] = {run.path.resolve(): run for run in trained}
    made = {
        "results": tables.results_table(results, by_directory),
        "paired-comparison": tables.comparison_table(comparisons, baseline),
        "trainings": tables.training_table(trained),
        "runs": tables.runs_table(found.finished, counted, root),
        "left-out": tables.left_out_table(found.left_out, root),
    }
    return {name: table for name, table in made.items() if len(table.frame)}

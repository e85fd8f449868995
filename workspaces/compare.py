"""Compares two policies on the episodes that both were tested on: compare.html, compare.json and text."""

import logging
import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from dp.files import write_bytes, write_json
from workspaces import command
from workspaces.arguments import MISSING
from workspaces.base import Config, Workspace, default_run_dir
from workspaces.report import figures, page, pair, runs, tables
from workspaces.report.tables import Comparison, Result
from workspaces.rollouts import counted

log = logging.getLogger(__name__)


class CompareWorkspace(Workspace):
    """Writes compare.html, compare.json, tables and a figure into `run_dir`, by default below outputs/comparison.

    Raises ValueError if `a` or `b` is missing or is not one setting, and if they were not tested under one protocol on
    common env seeds.
    """

    computes = False

    def __init__(self, config: Config) -> None:
        super().__init__({**config, "name": "comparison"})
        for key in ("a", "b"):
            if config[key] in (MISSING, None):
                raise ValueError(
                    f"set {key}=DIR: a run, an evaluation, or a directory with one setting's training seeds"
                )
        self.paths = Path(config["a"]), Path(config["b"])
        if self.paths[0].resolve() == self.paths[1].resolve():
            raise ValueError(f"a={config['a']} and b={config['b']} are the same directory, expected two policies")
        self.run_dir = Path(config["run_dir"] or default_run_dir(self.config))
        self.trusted = config.get("trust") or ()
        self.html = self.run_dir / "compare.html"

    def run(self) -> None:
        """Makes all results before it writes any file."""
        comparison, names = self.compare()
        seeds = pair.common_seeds(comparison.one, comparison.reference)
        made = {
            "results": tables.results_table([comparison.one, comparison.reference], {}),
            "difference": tables.comparison_table([comparison], "b"),
            "settings": pair.settings_table(comparison.one, comparison.reference),
            "episodes": pair.episodes_table(comparison, seeds),
        }
        with figures.style():
            drawn = pair.episodes_figure(comparison, seeds, *names)
            svg, png, pdf = figures.svg(drawn), figures.png(drawn), figures.pdf(drawn)
        self.take_run_dir()
        html = page.render_comparison(
            *names,
            protocol=str(comparison.one.protocol),
            seeds=f"{seeds[0]}–{seeds[-1]}",
            comparison=comparison,
            tables=made,
            figures={"episodes": (svg, pdf)},
            films=pair.films(comparison, seeds),
            command_line=command.run(
                "workspace=compare", *map(command.override, "ab", self.paths), *command.trust(self.trusted)
            ),
        )
        files = {"figures/episodes.png": png, "figures/episodes.pdf": pdf}
        for name, table in made.items():
            files |= {f"tables/{name}.{kind}": form.write(table) for kind, form in page.FORMATS.items()}
        for name, content in files.items():
            write_bytes(self.run_dir / name, content)
        self.html = self.run_dir / "compare.html"
        write_json(self.run_dir / "compare.json", pair.facts(comparison, seeds, names))
        write_bytes(self.html, html.encode())
        self._say(comparison, names)

    def compare(self) -> tuple[Comparison, tuple[str, str]]:
        """The paired comparison of a and b, and their names."""
        names = _names(*self.paths)
        a, b = (_side(key, path, self.trusted) for key, path in zip("ab", self.paths, strict=True))
        _check_comparable(a, b)
        one, other = (replace(side, setting={"name": name}) for side, name in zip((a, b), names, strict=True))
        return tables.paired(one, other), names

    def _say(self, comparison: Comparison, names: tuple[str, str]) -> None:
        for key, name, side in zip("ab", names, (comparison.one, comparison.reference), strict=True):
            score, success = tables.interval(side.score), tables.interval(side.success, percent=True)
            log.info("%s: %s  score %s  success %s", key, name, score, success)
        log.info("a - b on %s:", counted(comparison.n_episodes, "common episode"))
        for name in ("score", "success"):
            value = getattr(comparison, name)
            text = tables.difference(value, percent=name == "success")
            log.info("  %s %s  P(a is better) %s", name, text, tables.probability(value.p_better))
        log.info("%s", self.html)


def _names(a: Path, b: Path) -> tuple[str, str]:
    """The names of the two directories, with as much of their paths as tells them apart."""
    above = Path(os.path.commonpath([a.resolve().parent, b.resolve().parent]))
    if a.resolve().name != b.resolve().name:
        return a.resolve().name, b.resolve().name
    return str(a.resolve().relative_to(above)), str(b.resolve().relative_to(above))


def _side(key: str, path: Path, trusted: Collection[str]) -> Result:
    """The one result in the directory. Raises ValueError, naming `key`, if there is none or more than one."""
    found = runs.find(path, trusted, key)
    results = tables.results(tables.count(found))
    if not results:
        left = [f"{left.path}: {left.reason}" for left in found.left_out]
        reason = f" ({left[0]})" if left else ""
        raise ValueError(f"{key}={path} has no rollouts of a finished run{reason}")
    if len(results) > 1:
        held = "; ".join(f"{result.label} ({result.protocol})" for result in results[:4])
        raise ValueError(
            f"{key}={path} holds {len(results)} results, expected one: {held}. Name a directory further down"
        )
    return results[0]


def _check_comparable(a: Result, b: Result) -> None:
    """Raises ValueError, naming the first difference, unless the two were tested by the same rules on common seeds."""
    rules: dict[str, list[object]] = {
        "the task": [side.runs[0].task.tested_in for side in (a, b)],
        "env_runner.max_steps": [side.protocol.max_steps for side in (a, b)],
        "what makes the test harder (env_runner.kick, env_runner.n_late)": [
            side.protocol.disturbances or "nothing" for side in (a, b)
        ],
        **{
            f"the definition of {name}": [getattr(side.runs[0].words, name) for side in (a, b)]
            for name in ("score", "success", "reset")
        },
    }
    for name, (of_a, of_b) in rules.items():
        if of_a != of_b:
            raise ValueError(
                f"a and b were not tested under one protocol: {name} is {of_a} for a and {of_b} for b. Evaluate one of "
                "them again, under the protocol of the other (workspace=evaluate)"
            )
    if len(pair.common_seeds(a, b)) < 2:
        raise ValueError(
            f"a and b have fewer than two env seeds in common: {a.protocol.first}-{a.protocol.last} and "
            f"{b.protocol.first}-{b.protocol.last}. Evaluate one on the seeds of the other (env_runner.start_seed, "
            "env_runner.n_episodes)"
        )

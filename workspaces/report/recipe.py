"""The recipe card: overrides, differences from the named experiment, versions, machine and time."""

import re
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import datetime
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from workspaces import build
from workspaces.base import Config
from workspaces.report.runs import Run
from workspaces.report.tables import CONFIGS, data_of, training_minutes, value_of
from workspaces.settings import flatten, keys_with
from workspaces.timer import duration

OF_THE_PLACE = keys_with("data", "source", "speed", "place", "output", "verb", "outside")
"""Keys of the place where a run was made, which the facts repeat."""


EXPERIMENT = re.compile(r"[\w-]+")
"""A name that is looked up among the experiments. Nothing else from a run directory is composed."""


class Fact(NamedTuple):
    """A line of the card. If the runs differ there are several values, and `of` assigns them."""

    name: str
    values: dict[str, list[str]]


class Recipe(NamedTuple):
    """One experiment's card. `differences`: (key, in the experiment, in these runs); `missing`: the reason if there are
    none."""

    name: str
    facts: list[Fact]
    commands: list[tuple[str, str]]
    differences: list[tuple[str, str, str]]
    missing: str


def recipes(runs: list[Run]) -> list[Recipe]:
    """A card for each experiment among the runs."""
    names = dict.fromkeys(run.config["name"] for run in runs)
    return [_recipe(name, [run for run in runs if run.config["name"] == name]) for name in names]


def _recipe(name: str, runs: list[Run]) -> Recipe:
    """The card of some runs, from the trainings or else from their configurations in evaluations."""
    trainings = [run for run in runs if run.verb == "train"]
    base = experiment(name)
    differences = _differences(base, [run.config for run in trainings]) if base and trainings else []
    missing = ""
    if base is None:
        missing = f"There is no experiment {name!r} among the configurations here to compare with."
    elif not trainings:
        missing = "The trainings are not among these runs, so there is no complete configuration to compare."
    commands = [(str(run.path), " ".join(run.record.get("overrides", []))) for run in runs]
    return Recipe(name, list(_facts(runs)), commands, differences, missing)


def experiment(name: str) -> Config | None:
    """The configuration of a named experiment as it is now, resolved as a run's is; None if there is no such file."""
    if not EXPERIMENT.fullmatch(name) or not (CONFIGS / "experiment" / f"{name}.yaml").is_file():
        return None
    outside = not GlobalHydra.instance().is_initialized()
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3") if outside else nullcontext():
            composed = compose("config", [f"+experiment={name}"])
    except HydraException:
        return None
    return build.resolve(build.settings(composed))


def _differences(base: Config, configs: list[Config]) -> list[tuple[str, str, str]]:
    old, new = flatten(base), [flatten(config) for config in configs]
    keys = dict.fromkeys([*old, *(key for one in new for key in one)])
    lines = []
    for key in keys:
        values = list(dict.fromkeys(value_of(one.get(key)) for one in new))
        if values != [value_of(old.get(key))] and not key.startswith(OF_THE_PLACE):
            lines.append((key, value_of(old.get(key)), ", ".join(values)))
    return lines


def _facts(runs: list[Run]) -> Iterator[Fact]:
    yield _fact("commit", runs, lambda run: run.record.get("commit"))
    yield _fact("machine", runs, _machine)
    yield _fact("data", runs, data_of)
    versions = [run.record.get("versions") or {} for run in runs]
    names = list(dict.fromkeys(name for one in versions for name in one))
    same = [name for name in names if len({one.get(name) for one in versions}) == 1]
    yield Fact("versions", {", ".join(f"{name} {versions[0][name]}" for name in same) or "not recorded": []})
    for name in set(names) - set(same):
        yield _fact(name, runs, lambda run, name=name: (run.record.get("versions") or {}).get(name))
    yield Fact("time", {_times(runs): []})
    yield Fact("protocol", {sentence: [] for sentence in map(_sentence, runs)})


def _machine(run: Run) -> str | None:
    machine = run.record.get("machine")
    if machine is None:
        return None
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    return f"{machine['cpu']}, {machine['cores']} cores{gpu} ({machine['host']})"


def _fact(name: str, runs: list[Run], of: Any) -> Fact:
    values: dict[str, list[str]] = {}
    for run in runs:
        values.setdefault(str(of(run) or "not recorded"), []).append(run.path.name)
    return Fact(name, values)


def _times(runs: list[Run]) -> str:
    walls = [wall for wall in map(_wall_s, runs) if wall is not None]
    trained = [minutes for minutes in map(training_minutes, runs) if minutes]
    together = f", {len(walls)} runs together" if len(walls) > 1 else ""
    parts = [f"{duration(sum(walls))} from start to end{together}"] if walls else []
    parts += [f"{duration(60 * sum(trained))} of it in training steps"] if trained else []
    return "; ".join(parts) or "unknown"


def _wall_s(run: Run) -> float | None:
    begun, ended = run.record.get("begun"), run.record.get("ended")
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds() if begun and ended else None


def _sentence(run: Run) -> str:
    protocol, steps = run.protocol, run.protocol.max_steps
    if not protocol.n_episodes:
        return "validation on held-out episodes, no rollouts"
    most = f"at most {steps} control steps" if isinstance(steps, int) else steps
    name = f"{protocol.name}: " if protocol.name else ""
    return (
        f"{name}{protocol.n_episodes} episodes on env seeds {protocol.first}–{protocol.last}, {most}; {run.words.reset}"
    )

"""Settings and their statistics: replicates and comparisons."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from dp.intervals import UNKNOWN, Bounds, Difference, Estimate, crossed_mean, paired_difference, proportion
from workspaces import build
from workspaces.report.runs import FINAL, Found, LeftOut, Protocol, Run
from workspaces.rollouts import text_of
from workspaces.settings import flatten, keys_without

NO_SETTING = keys_without("identity", "training", "length", "sampling", "guidance")
"""Keys of the place, speed and protocol of a run, which do not tell settings apart."""

STEPS = "scheduler.num_inference_steps"
TASK = "task.name"
ACTION_ERROR = "val/action_mse"
CONFIGS = Path(__file__).parent.parent.parent / "configs"

Setting = dict[str, Any]
"""The keys in which settings of a report differ, with their values."""


@dataclass(frozen=True)
class Table:
    """A table in both forms: `frame` has plain numbers, `shown` what people read. `note` says how to read it."""

    title: str
    frame: pd.DataFrame
    shown: pd.DataFrame
    note: str = ""


@dataclass(frozen=True)
class Result:
    """Result of one setting under one protocol: one run per training seed, on the same episodes."""

    setting: Setting
    protocol: Protocol
    runs: list[Run]

    def values(self, key: str) -> np.ndarray:
        """Values of every episode: (S, E)."""
        return np.array([[row[key] for row in run.episodes] for run in self.runs], float)

    def bounds(self, name: str) -> Bounds | None:
        """The task's bounds of the reward or of a named quantity."""
        return self.runs[0].task.bounds.get(name)

    @property
    def score(self) -> Estimate:
        """Mean best reward."""
        return crossed_mean(self.values("max_reward"), self.bounds("reward"))

    @property
    def success(self) -> Estimate:
        """Share of episodes that succeed; unknown if the environment does not say.

        The interval is Wilson's for one seed, and over the episodes alone if every seed has the same successes.
        """
        values = self.values("success")
        if np.isnan(values).any():
            return UNKNOWN
        if len(values) == 1 or values.min() == values.max():
            return proportion(int(values[0].sum()), len(values[0]))
        return crossed_mean(values, (0.0, 1.0))

    @property
    def quantities(self) -> list[str]:
        """Keys of the environment's named quantities at the end, which every episode has."""
        rows = [row for run in self.runs for row in run.episodes]
        return [key for key in rows[0] if key.startswith(FINAL) and all(key in row for row in rows)]

    def quantity(self, key: str) -> Estimate:
        """Mean of a named quantity at the end."""
        return crossed_mean(self.values(key), self.bounds(key.removeprefix(FINAL)))

    @property
    def inference_ms(self) -> float:
        """Mean over the runs; nan if none has measured it."""
        return float(np.mean([run.inference_ms for run in self.runs if run.inference_ms is not None] or [np.nan]))

    @property
    def label(self) -> str:
        return label(self.setting) or self.runs[0].config["name"]


def short(key: str) -> str:
    """scheduler._target_ -> scheduler; scheduler.num_inference_steps -> num_inference_steps; task.name -> task."""
    return "task" if key == TASK else key.removesuffix("._target_").rpartition(".")[2]


def value_of(value: object) -> str:
    """diffusers.DDIMScheduler -> ddim; mylab.nets.Transformer -> Transformer; 0.00010 -> 0.0001."""
    text = "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
    return _options().get(text) or (text.rpartition(".")[2] if CLASS.fullmatch(text) else text)


ROUND = re.compile(r"round-(\d{1,6})-(\w+)")
"""Name of a run directory of an improvement: its round, and its kind."""

CLASS = re.compile(r"(\w+\.)+[A-Z]\w*")
"""A dotted name of a class: capitalised, as files and versions are not."""


@cache
def _options() -> dict[str, str]:
    """Dotted name -> what a user types to choose it. Of several options with one class, the plain one: unet1d."""
    names: dict[str, str] = {}
    for file in sorted(CONFIGS.glob("*/*.yaml"), key=lambda file: -len(file.stem)):
        target = (yaml.safe_load(file.read_text()) or {}).get("_target_")
        if target and file.parent.name != "task":
            names[target] = file.stem
    return names


def label(setting: Setting) -> str:
    """The label of a setting: "my_experiment, horizon=16, num_inference_steps=10"."""
    return ", ".join(
        value_of(value) if key == "name" else f"{short(key)}={value_of(value)}" for key, value in setting.items()
    )


def short_labels(settings: Sequence[Setting]) -> list[str]:
    """The labels, without the keys in which none of these differ: the names for one figure. May be empty."""
    varying = {key for one in settings for key, value in one.items() if any(o.get(key) != value for o in settings)}
    kept = varying or {"name"}
    return [label({key: value for key, value in one.items() if key in kept}) for one in settings]


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run from the keys in which it differs, or else from its experiment."""
    return [label(setting) or run.config["name"] for run, setting in zip(runs, settings(runs), strict=True)]


def settings(runs: Sequence[Run]) -> list[Setting]:
    """For each run the keys in which the runs differ, without redundant ones."""
    flat = [_flat(run) for run in runs]
    names: dict[str, str] = {}
    for run, one in zip(runs, flat, strict=True):
        if sha256 := run.config.get("dataset", {}).get("sha256"):  # a renamed store holds the same data
            one["data"] = names.setdefault(sha256, one["data"])
    keys = [key for key in dict.fromkeys(key for one in flat for key in one) if len(_column(flat, key)) > 1]
    learned = [run.config for run in runs if run.config.get("horizon") is not None]  # somebody else's policy has none
    if all(config.get("n_action_steps") == build.auto_action_steps(config) for config in learned):
        keys = [key for key in keys if key != "n_action_steps"]  # it only follows the horizon
    keys = _without_echoes(flat, keys)
    return [{key: one.get(key) for key in keys} for one in flat]


def _flat(run: Run) -> dict[str, Any]:
    """Keys that could be a setting, the most telling first."""
    flat = {key: value for key, value in flatten(run.config).items() if not key.startswith(NO_SETTING)}
    early = ("name", TASK, "horizon", "n_obs_steps", "n_action_steps")
    first = {key: flat.pop(key) for key in early if key in flat}
    if match := ROUND.fullmatch(run.path.name):
        first["round"] = int(match[1])
    first["data"] = data_of(run)
    if run.checkpoint is not None and "best" in run.checkpoint.rpartition("/")[2]:
        flat["checkpoint"] = "best"
    return first | {key: str(value) if isinstance(value, list) else value for key, value in flat.items()}


def data_of(run: Run) -> str | None:
    """Name of the training data: the task's name for them, or their own with the beginning of the sha256."""
    dataset = run.config.get("dataset", {})
    paths, sha256 = dataset.get("path"), dataset.get("sha256")
    if sha256 in run.task.data_names:
        return run.task.data_names[sha256]
    if not paths:
        return None
    name = " + ".join(Path(path).stem for path in ([paths] if isinstance(paths, str) else paths))
    return f"{name} ({sha256[:6]})" if sha256 else name


def differing(a: Run, b: Run) -> list[Setting]:
    """The settings of two runs, as far as they differ, including those that follow from others."""
    flat = [_flat(a), _flat(b)]
    keys = [key for key in dict.fromkeys([*flat[0], *flat[1]]) if key != "name" and len(_column(flat, key)) > 1]
    return [{key: one.get(key) for key in keys} for one in flat]


def _column(flat: list[dict[str, Any]], key: str) -> set[str]:
    return {repr(one.get(key)) for one in flat}


def _without_echoes(flat: list[dict[str, Any]], keys: list[str]) -> list[str]:
    """Drops the arguments that go with another class, and either the experiment's name or the keys that follow from
    it."""
    for target in [key for key in keys if key.endswith("._target_")]:
        group = target.removesuffix("_target_")
        told = {key for key in keys if key.startswith(group) and key not in (target, STEPS)}
        keys = [key for key in keys if key not in told or not _follows(flat, key, target)]
    if TASK in keys:  # observations and action go with the task
        keys = [key for key in keys if key == TASK or not (key.startswith("task.") and _follows(flat, key, TASK))]
    if "round" in keys:  # of an improvement: what it trained on, from where and how long goes with the round
        keys = [key for key in keys if key == "round" or not _follows(flat, key, "round")]
    if "name" in keys:
        told = {key for key in keys if key != "name" and _follows(flat, key, "name")}
        keys = [key for key in keys if key != "name"] if 0 < len(told) <= 2 else [k for k in keys if k not in told]
    return keys


def _follows(flat: list[dict[str, Any]], key: str, other: str) -> bool:
    """Whether runs that agree in `other` agree in `key`."""
    return len({(repr(one.get(other)), repr(one.get(key))) for one in flat}) == len(_column(flat, other))


def count(found: Found) -> list[Run]:
    """The runs that results come from: evaluations, and trainings none of whose checkpoints was evaluated here.

    Of two runs with the same setting, seed and protocol the later one counts; the other joins `found.left_out`.
    """
    evaluated = {run.trained_in for run in found.finished if run.verb == "evaluate"}
    runs = [run for run in found.finished if run.verb == "evaluate" or run.path.resolve() not in evaluated]
    latest: dict[object, Run] = {}
    for run, setting in sorted(zip(runs, settings(runs), strict=True), key=lambda pair: pair[0].ended):
        key = (repr(setting), run.replicate, run.protocol)
        if key in latest:
            reason = f"the same setting, {run.replicate} and protocol as the later {run.path}"
            found.left_out.append(LeftOut(latest[key].path, "superseded", reason))
        latest[key] = run
    return [run for run in runs if run in latest.values()]


def results(runs: list[Run]) -> list[Result]:
    """Runs that count and have episodes, as settings with their replicates; best score first, protocol by protocol."""
    runs = [run for run in runs if run.episodes]
    groups: dict[object, Result] = {}
    for run, setting in zip(runs, settings(runs), strict=True):
        groups.setdefault((repr(setting), run.protocol), Result(setting, run.protocol, [])).runs.append(run)
    for group in groups.values():
        group.runs.sort(key=lambda run: run.config["seed"])
    return sorted(groups.values(), key=lambda r: (r.protocol.task, str(r.protocol), -r.score.value))


def results_table(results: list[Result], trained: dict[object, Run]) -> Table:
    """One row per setting. `trained`: the training runs by directory."""
    rows, shown = [], []
    quantities = dict.fromkeys(key for result in results for key in result.quantities)
    privileged = any(run.privileged for result in results for run in result.runs)
    for result in results:
        minutes = [m for m in (training_minutes(trained.get(_training_of(run))) for run in result.runs) if m]
        sources = " and ".join(sorted({"evaluation" if r.verb == "evaluate" else "last rollout" for r in result.runs}))
        keys = {short(key): value_of(value) for key, value in result.setting.items()} or {"setting": result.label}
        seeds, episodes = len(result.runs), result.protocol.n_episodes
        facts = {"task": result.protocol.task, "protocol": str(result.protocol), "from": sources}
        if privileged:
            facts["sees the true state"] = "yes, which no robot does" if result.runs[0].privileged else "no"
        numbers = {"inference ms": result.inference_ms, "training min": float(np.mean(minutes or [np.nan]))}
        estimates = {"score": result.score, "success": result.success}
        own = result.quantities  # tasks differ in theirs
        estimates |= {quantity_name(key): result.quantity(key) if key in own else UNKNOWN for key in quantities}
        rows.append({**keys, **_spread(estimates), **numbers, "training seeds": seeds, "episodes": episodes, **facts})
        texts = {f"{name} [95 %]": interval(e, percent=name == "success") for name, e in estimates.items()}
        texts |= {name: number(value, 1) for name, value in numbers.items()}
        shown.append({**keys, **texts, "seeds × episodes": f"{seeds} × {episodes}", **facts})
    note = (
        f"{metric_words(results)} Intervals cover both the training seeds and the episodes. With one training seed, "
        "they cannot tell how much another seed would differ. A single episode has none."
    )
    several = len({result.protocol.task for result in results}) > 1
    dropped = () if several else ("task",)
    frame, same = _without_constants(
        _with_dashes(shown).drop(columns=[*dropped], errors="ignore"), ("protocol", "from", "sees the true state")
    )
    return Table("Results", pd.DataFrame(rows), frame, " ".join([note, *same]))


def metric_words(results: list[Result]) -> str:
    """Definitions of score and success, task by task if they differ."""
    words: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for run in result.runs:
            defined = any(row["success"] is not None for row in run.episodes)
            success = run.words.success if defined else "not defined by the environment"
            tasks = words.setdefault((run.words.score, success), [])
            tasks += [] if result.protocol.task in tasks else [result.protocol.task]
    return " ".join(
        f"Score{of}: {score}. Success{of}: {success}."
        for (score, success), tasks in words.items()
        for of in [f" ({', '.join(tasks)})" if len(words) > 1 else ""]
    )


def quantity_name(key: str) -> str:
    """final_tip_height -> final tip height."""
    return key.replace("_", " ")


def _with_dashes(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A table for people, with a dash for a quantity that a row's task does not have."""
    frame = pd.DataFrame(rows)
    return frame.astype(object).where(frame.notna(), "–")


def _without_constants(frame: pd.DataFrame, names: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """Turns columns that are constant into sentences: a table of one protocol needs no column for it."""
    constant = [name for name in names if name in frame and frame[name].nunique() == 1]
    return frame.drop(columns=constant), [f"{name.capitalize()}: {frame[name].iloc[0]}." for name in constant]


def _training_of(run: Run) -> object:
    return run.trained_in if run.verb == "evaluate" else run.path.resolve()


def _spread(estimates: dict[str, Estimate]) -> dict[str, float]:
    return {
        f"{name}{end}": value
        for name, estimate in estimates.items()
        for end, value in zip(("", " low", " high"), estimate, strict=True)
    }


@dataclass(frozen=True)
class Comparison:
    """Two results on the same episodes: `score`, `success` and named quantities of `one` less those of `reference`."""

    one: Result
    reference: Result
    n_episodes: int
    score: Difference
    success: Difference
    quantities: dict[str, Difference]


def compare(results: list[Result], baseline: Mapping[str, object] | None) -> list[Comparison]:
    """Compares every setting with the baseline, or with the best one of its protocol.

    A baseline that names some of the keys, {"horizon": 16} where num_inference_steps differs, too, is for each setting
    the one that differs from it in those keys only. Raises ValueError for one that no setting has.
    """
    wanted = _full_keys(baseline, results) if baseline else {}
    if baseline and not any(_has(result, wanted) for result in results):
        known = "; ".join(dict.fromkeys(r.label for r in results))
        raise ValueError(f"report.baseline={baseline} is none of the settings, expected some keys of one of: {known}")
    pairs = [(one, _reference(one, results, wanted)) for one in results]
    return [paired(one, reference) for one, reference in pairs if reference is not None and reference is not one]


def _full_keys(baseline: Mapping[str, object], results: list[Result]) -> Setting:
    """num_inference_steps -> scheduler.num_inference_steps. Raises ValueError for keys that no setting has."""
    full = {name: key for result in results for key in result.setting for name in (key, short(key))}
    for key in baseline:
        if key not in full:
            known = ", ".join(short(key) for key in (results[0].setting if results else {})) or "nothing"
            raise ValueError(f"report.baseline={dict(baseline)}: the settings do not differ in {key}, but in: {known}")
    return {full[key]: value for key, value in baseline.items()}


def _has(result: Result, wanted: Setting) -> bool:
    return all(
        value_of(result.setting[key]) == value_of(value) or str(result.setting[key]).endswith(f".{value}")
        for key, value in wanted.items()
    )


def _reference(one: Result, results: list[Result], wanted: Setting) -> Result | None:
    """The setting to compare with, under the same protocol if possible, else under one that may share env seeds."""
    pool = [r for r in results if r is one or (r.setting != one.setting and _shares_seeds(r, one))]
    if wanted:
        having = [r for r in pool if _has(r, wanted)]
        same = [r for r in having if all(r.setting[k] == v for k, v in one.setting.items() if k not in wanted)]
        pool = same or (having if len({r.label for r in having}) == 1 else [])
    own = [r for r in pool if r.protocol == one.protocol]
    pool = own if own and own != [one] else pool
    return max(pool, key=lambda r: r.score.value, default=None)


def _shares_seeds(a: Result, b: Result) -> bool:
    common = min(a.protocol.last, b.protocol.last) - max(a.protocol.first, b.protocol.first) + 1
    return a.protocol.task == b.protocol.task and a.protocol.max_steps == b.protocol.max_steps and common > 1


def paired(one: Result, reference: Result) -> Comparison:
    """Compares two results on the env seeds that both have."""
    # Both results have one column per env seed: cut them to the seeds in common.
    first = max(one.protocol.first, reference.protocol.first)
    last = min(one.protocol.last, reference.protocol.last)

    def common(result: Result, key: str) -> np.ndarray:
        return result.values(key)[:, first - result.protocol.first :][:, : last - first + 1]

    def difference(key: str, bounds: Bounds | None) -> Difference:
        a, b = common(one, key), common(reference, key)
        if np.isnan(a).any() or np.isnan(b).any():  # success, where the environment does not say
            return Difference(*UNKNOWN, p_better=0.5)
        return paired_difference(a, b, bounds)

    shared = [key for key in one.quantities if key in reference.quantities]
    return Comparison(
        one=one,
        reference=reference,
        n_episodes=last - first + 1,
        score=difference("max_reward", one.bounds("reward")),
        success=difference("success", (0.0, 1.0)),
        quantities={quantity_name(key): difference(key, one.bounds(key.removeprefix(FINAL))) for key in shared},
    )


def comparison_table(comparisons: list[Comparison], baseline: object) -> Table:
    """One row per comparison."""
    rows, shown = [], []
    references = list(dict.fromkeys(c.reference.label for c in comparisons))
    several = len(references) > 1
    for c in comparisons:
        names = {"setting": c.one.label, "compared with": c.reference.label}
        counts = {"common episodes": c.n_episodes, "training seeds": f"{len(c.one.runs)} / {len(c.reference.runs)}"}
        differences = {"score": c.score, "success": c.success, **c.quantities}
        estimates = {f"{name} difference": Estimate(*difference[:3]) for name, difference in differences.items()}
        numbers = _spread(estimates)
        rows.append({**names, **counts, **numbers, "p better score": c.score.p_better})
        texts = {
            f"{name} [95 %]": interval(e, percent=name == "success difference", sign=True)
            for name, e in estimates.items()
        }
        texts["P(better score)"] = probability(c.score.p_better)
        shown.append({**(names if several else {"setting": c.one.label}), **texts, **counts})
    chosen = "the setting next to it" if several else references[0] if references else ""
    picked = "" if baseline else ", the best one, chosen on these very episodes"
    note = (
        f"Each row is a setting minus {chosen}{picked}, on the same env seeds, so that the difficulty of an episode "
        "cancels out. If an interval excludes 0, other seeds and episodes would show a difference, too. P is the "
        "probability that the setting's true mean is higher (flat prior)."
    )
    return Table("Paired comparison", pd.DataFrame(rows), _with_dashes(shown), note)


def training_minutes(run: Run | None) -> float | None:
    """Time spent in training steps, without validation and rollouts."""
    seconds = [row["time/training_s"] for row in run.metrics if "time/training_s" in row] if run else []
    return seconds[-1] / 60 if seconds else None


def training_table(runs: list[Run]) -> Table:
    """One row per training setting: scores of the rollouts, or else the validation's action error."""
    groups: dict[tuple[str, Protocol], list[Run]] = {}
    for run, name in zip(runs, labels(runs), strict=True):
        groups.setdefault((name, run.protocol), []).append(run)
    scored = any(run.curve("rollout/score") for run in runs)
    validated = not all(run.curve("rollout/score") for run in runs)
    several = len({run.protocol.task for run in runs}) > 1
    rows = [
        {
            "setting": name,
            **({"task": protocol.task} if several else {}),
            **(_scores(group) if scored else {}),
            **(_errors(group) if validated else {}),
            "steps": int(np.mean([run.step or 0 for run in group])),
            "training min": _mean(training_minutes(run) for run in group),
            "training seeds": len(group),
            **({"episodes": protocol.n_episodes, "protocol": str(protocol)} if scored else {}),
        }
        for (name, protocol), group in groups.items()
    ]
    frame = pd.DataFrame(rows)
    digits = {"training min": 1, "best score †": 3, "mean of last 10": 3, "last score": 3}
    digits |= {"best action error ‡": 4, "last action error": 4}
    note = " ".join(([SCORE_NOTE] if scored else []) + ([ERROR_NOTE] if validated else []))
    return Table("Trainings", frame, _rounded(frame, digits), note)


SCORE_NOTE = (
    "Scores of the rollouts during training, averaged over the training seeds. † The best checkpoint was chosen on "
    "the episodes that score it, which is optimistic. If there were fewer than ten rollouts, the mean is over "
    "all of them."
)
ERROR_NOTE = (
    "Action errors are mean squared errors of sampled actions on held-out episodes, in normalised units, averaged over "
    "the training seeds. ‡ The best checkpoint was chosen by this very error, which is optimistic."
)


def _scores(group: list[Run]) -> dict[str, float]:
    curves = [list(curve.values()) for run in group if (curve := run.curve("rollout/score"))]
    return {
        "best score †": _mean(max(curve) for curve in curves),
        "mean of last 10": _mean(float(np.mean(curve[-10:])) for curve in curves),
        "last score": _mean(curve[-1] for curve in curves),
        "rollouts": min(map(len, curves), default=0),
    }


def _errors(group: list[Run]) -> dict[str, float]:
    curves = [list(curve.values()) for run in group if (curve := run.curve(ACTION_ERROR))]
    return {
        "best action error ‡": _mean(min(curve) for curve in curves),
        "last action error": _mean(curve[-1] for curve in curves),
    }


def _mean(values: Iterable[float | None]) -> float:
    return float(np.mean([v for v in values if v is not None] or [np.nan]))


def runs_table(runs: list[Run], counted: list[Run], root: Path) -> Table:
    """Lists every finished run, to trace each number above to its files. Directories are relative to `root`."""
    several = len({run.protocol.task for run in runs}) > 1
    scored, unscored = any(run.episodes for run in runs), not all(run.episodes for run in runs)
    rows = [
        {
            "directory": _from(root, run.path),
            "verb": run.verb,
            "setting": name,
            **({"task": run.protocol.task} if several else {}),
            "seed": run.config["seed"],
            "protocol": str(run.protocol),
            **({"score": _mean([row["max_reward"] for row in run.episodes])} if scored else {}),
            **({"last action error": _errors([run])["last action error"]} if unscored else {}),
            **({"in the results": "yes" if run in counted and run.episodes else "no"} if scored else {}),
            "ended": (run.record.get("ended") or "")[:16].replace("T", " "),
        }
        for run, name in zip(runs, labels(runs), strict=True)
    ]
    frame = pd.DataFrame(rows)
    note = "If a checkpoint of a training was evaluated, the results use the evaluation instead." if scored else ""
    return Table("Finished runs", frame, _rounded(frame, {"score": 3, "last action error": 4}), note)


def _from(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def left_out_table(left_out: list[LeftOut], root: Path) -> Table:
    """Lists directories, relative to `root`, without a number in this report."""
    frame = pd.DataFrame(
        [{"directory": _from(root, left.path), "state": left.state, "reason": left.reason} for left in left_out],
        columns=["directory", "state", "reason"],
    )
    return Table("Left out", frame, frame, "No average includes these. Trainings among them have dashed curves.")


def interval(estimate: Estimate, percent: bool = False, sign: bool = False) -> str:
    """0.975 [0.966, 0.982], or 45.8 % [41.5, 50.2], with minus signs."""
    return text_of(estimate, percent, sign).replace("-", "−")


def difference(value: Difference, percent: bool = False) -> str:
    """+0.021 [−0.004, +0.046]."""
    return interval(Estimate(*value[:3]), percent, sign=True)


def number(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def probability(p: float) -> str:
    """A probability in words, never 0 or 1."""
    return "< 0.01" if p < 0.01 else "> 0.99" if p > 0.99 else f"{p:.2f}"


def _rounded(frame: pd.DataFrame, digits: dict[str, int]) -> pd.DataFrame:
    def rounder(n: int) -> Callable[[float], str]:
        return lambda value: number(value, n)

    return frame.assign(**{name: frame[name].map(rounder(n)) for name, n in digits.items() if name in frame})

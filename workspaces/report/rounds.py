"""The rounds of `workspace=improve`: what each collected, and how well its policy does."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dp.data.recording import STORE, n_episodes, n_frames
from dp.intervals import Estimate
from workspaces.report import figures
from workspaces.report.runs import Run
from workspaces.report.tables import ROUND, Result, Table, interval
from workspaces.rollouts import named


@dataclass(frozen=True)
class Round:
    """One evaluation of an improvement.

    improvement: name of its directory, empty if there is only one. critic: whether a learned critic chooses among the
    policy's plans. episodes, frames: what was collected before it was trained, None if nothing was.
    """

    improvement: str
    number: int
    critic: bool
    run: Run
    episodes: int | None
    frames: int | None

    @property
    def score(self) -> Estimate:
        return Result({}, self.run.protocol, [self.run]).score

    @property
    def success(self) -> Estimate:
        return Result({}, self.run.protocol, [self.run]).success


def find(runs: Sequence[Run]) -> list[Round]:
    """The rounds among `runs`, in their order."""
    named = [(ROUND.fullmatch(run.path.name), run) for run in runs if run.verb == "evaluate"]
    rounds = [(match, run) for match, run in named if match is not None and match[2] in ("evaluate", "guided")]
    several = len({run.path.parent.resolve() for _, run in rounds}) > 1
    found = [
        Round(
            run.path.parent.name if several else "",
            int(match[1]),
            match[2] == "guided",
            run,
            *_collected(run, int(match[1])),
        )
        for match, run in rounds
    ]
    return sorted(found, key=lambda one: (one.improvement, one.number, one.critic))


def _collected(run: Run, number: int) -> tuple[int | None, int | None]:
    store = run.path.parent / f"round-{number}-collect" / STORE
    try:
        return n_episodes(store), n_frames(store)
    except (OSError, ValueError, KeyError, IndexError):
        return None, None


def table(rounds: Sequence[Round]) -> Table:
    """One row per evaluation."""
    rows, shown = [], []
    for one in rounds:
        facts: dict[str, str | int] = {"improvement": one.improvement} if one.improvement else {}
        facts |= {"round": one.number, "guidance": "learned critic" if one.critic else "none"}
        for name, count in (("episodes collected", one.episodes), ("frames collected", one.frames)):
            facts[name] = "–" if count is None or one.critic else count
        rows.append({**facts, **named("score", one.score), **named("success", one.success)})
        texts = {"score [95 %]": interval(one.score), "success [95 %]": interval(one.success, percent=True)}
        shown.append({**facts, **texts})
    note = (
        f"Every row is {rounds[0].run.protocol.n_episodes} episodes ({rounds[0].run.protocol}), none of which begins "
        "like a collected one. A round trains on all that was collected up to it."
    )
    return Table("Rounds", pd.DataFrame(rows), pd.DataFrame(shown), note)


def figure(rounds: Sequence[Round]) -> Figure:
    """Score and success over rounds, with their intervals."""
    made = Figure(figsize=figures.SIZE)
    axes = made.add_subplot()
    improvements = list(dict.fromkeys(one.improvement for one in rounds))
    for improvement, name, critic in product(improvements, ("score", "success"), (False, True)):
        own = [one for one in rounds if one.improvement == improvement and one.critic == critic]
        if not own:
            continue
        is_success = name == "success"
        colour = 4 * improvements.index(improvement) + 2 * critic + is_success
        beside = (0.02 + 0.04 * critic) * (1 if is_success else -1)  # so that no interval hides another
        estimates = [getattr(one, name) for one in own]
        axes.errorbar(
            [one.number + beside for one in own],
            [e.value for e in estimates],
            [[e.value - e.low for e in estimates], [e.high - e.value for e in estimates]],
            color=figures.PALETTE[colour % len(figures.PALETTE)],
            ls="--" if is_success else "-",
            marker="D" if critic else "o",
            label=" ".join(filter(None, [improvement, name, "with a critic" if critic else ""])),
            ms=5, capsize=3, elinewidth=1,
        )  # fmt: skip
    axes.set(title="Rounds", xlabel="round", ylabel="score, success")
    axes.set_ylim(0, 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=2)
    return made

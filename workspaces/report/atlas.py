"""The failure atlas: every test episode where it starts, coloured by how it ended, with its video and its command."""

import base64
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from dp.tasks.pusht.env import PushTEnv
from workspaces.report.figures import svg
from workspaces.report.films import film
from workspaces.report.runs import Run
from workspaces.report.tables import Result
from workspaces.settings import groups_with, keys_with

MAX_SETTINGS = 12
MAX_VIDEO_BYTES = 32 << 20
"""Of all videos inside one page: browsers hold it in memory. The worst episodes come first; others are linked."""

NEAR = 0.9
"""Best reward from which a failed episode is a near miss: the block covered 85.5 % of the goal."""

OUTCOMES = {"failure": "#D55E00", "near miss": "#E69F00", "success": "#0072B2"}

SCALE = 0.4
"""Of the blocks on the map: at full size fifty of them hide each other."""

SHOWN_X, SHOWN_Y = (44, 456), (88, 500)
"""Pixels of the workspace on the map: what blocks begin in."""

OVERRIDDEN = (*groups_with("output", "verb", "outside"), *keys_with("episodes"))
"""What a replay sets itself, or what does not change what happens in it."""


@dataclass(frozen=True)
class Card:
    """One episode. `video` is inside the page; where there would be too many, only at `video_link`."""

    id: str
    seed: int
    outcome: str
    max_reward: float
    final_coverage: float
    length: int
    command: str
    video: str | None
    video_link: str | None


@dataclass(frozen=True)
class Sheet:
    """One setting's first training seed: the map as an SVG element, and its episodes, worst first."""

    name: str
    run: Run
    map: str
    cards: list[Card]

    @property
    def counts(self) -> dict[str, int]:
        return {outcome: sum(card.outcome == outcome for card in self.cards) for outcome in OUTCOMES}


def sheets(results: Iterable[Result], folder: Path) -> list[Sheet]:
    """A sheet for each of the best settings, for a page in `folder`. Missing videos are made in <folder>/videos.

    A figure is made: call it inside `figures.style()`.
    """
    best = sorted(results, key=lambda r: -r.score.value)[:MAX_SETTINGS]
    films = film([result.runs[0] for result in best], folder / "videos")
    left = MAX_VIDEO_BYTES
    made = []
    for number, result in enumerate(best):
        run = result.runs[0]
        cards = []
        for row in sorted(run.episodes, key=lambda row: (row["max_reward"], row["seed"])):
            file = run.video(row["seed"]) or films.get((run.path, row["seed"]))
            left -= file.stat().st_size if file else 0
            link = os.path.relpath(file, folder) if file else None
            cards.append(_card(run, row, number, link, _embedded(file) if file and left >= 0 else None))
        made.append(Sheet(f"{result.label} · {run.replicate} · {result.protocol}", run, _map(cards), cards))
    return made


def outcome_of(row: dict) -> str:
    """success, near miss or failure."""
    return "success" if row["success"] else "near miss" if row["max_reward"] >= NEAR else "failure"


def _embedded(file: Path) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _card(run: Run, row: dict, number: int, link: str | None, video: str | None) -> Card:
    return Card(
        id=f"episode-{number}-{row['seed']}",
        seed=row["seed"],
        outcome=outcome_of(row),
        max_reward=row["max_reward"],
        final_coverage=row["final_coverage"],
        length=row["length"],
        command=replay(run, row["seed"]),
        video=video,
        video_link=link,
    )


def replay(run: Run, seed: int) -> str:
    """The command that rolls the same policy out from `seed` again, and records it."""
    typed = run.record.get("overrides", []) if run.verb == "evaluate" else []
    kept = [o for o in typed if not o.lstrip("+~").startswith(OVERRIDDEN) or o.startswith("workspace.")]
    known = {override.partition("=")[0] for override in kept}
    if run.verb == "evaluate" and "overrides" not in run.record:
        kept.append(f"scheduler.num_inference_steps={run.config['scheduler']['num_inference_steps']}")
    steps = run.protocol.max_steps
    if steps != 300 and isinstance(steps, int) and "env_runner.max_steps" not in known:
        kept.append(f"env_runner.max_steps={steps}")
    policy = run.checkpoint or (run.path / "checkpoints/last.pt" if run.verb == "train" else None)
    new = [f"env_runner.start_seed={seed}", "env_runner.n_episodes=1", "env_runner.n_videos=1", "logger.mode=disabled"]
    of = [f"checkpoint={policy}"] if policy else []
    return shlex.join(["python", "run.py", "workspace=evaluate", *of, *kept, *new])


def _map(cards: list[Card]) -> str:
    figure = Figure(figsize=(4, 4))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=SHOWN_X, ylim=SHOWN_Y[::-1], aspect="equal")
    axes.axis("off")
    goal = _outlines(cards[0].seed)[1]
    axes.add_patch(Polygon(goal, facecolor="#8c959f", edgecolor="none", alpha=0.28, clip_on=False))
    axes.add_patch(Polygon(_shrunk(goal), facecolor="#8c959f", edgecolor="none", alpha=0.7, clip_on=False))
    for card in cards[::-1]:  # the worst lie on top
        colour = OUTCOMES[card.outcome]
        block = _shrunk(_outlines(card.seed)[0])
        patch = Polygon(block, facecolor=f"{colour}59", edgecolor=colour, lw=1, joinstyle="round", clip_on=False)
        patch.set_url(f"#{card.id}")
        axes.add_patch(patch)
    return _with_titles(re.sub(r' id="[^"]*"', "", svg(figure)), cards)


def _with_titles(drawing: str, cards: list[Card]) -> str:
    """What a pointer that rests on a block is told, and what a screen reader says."""
    titles = {card.id: f"seed {card.seed}: {card.outcome}, best reward {card.max_reward:.2f}" for card in cards}

    def link(found: re.Match[str]) -> str:  # matplotlib's opens another window
        return f'<a href="#{found[1]}"><title>{titles[found[1]]}</title>'

    return re.sub(r'<a [^>]*href="#([^"]*)"[^>]*>', link, drawing)


def _shrunk(outline: np.ndarray) -> np.ndarray:
    centre = (outline.min(0) + outline.max(0)) / 2
    return centre + SCALE * (outline - centre)


@cache
def _env() -> PushTEnv:
    return PushTEnv(["agent_pos"])


@cache
def _outlines(seed: int) -> tuple[np.ndarray, np.ndarray]:
    env = _env()
    env.reset(seed)
    return env.outlines()

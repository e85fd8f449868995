"""The failure map: every test episode where it starts, coloured by how it ended, with its video and its command."""

import base64
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from dp.tasks import Scene, Task
from workspaces.command import override
from workspaces.command import run as command_line
from workspaces.report.figures import svg
from workspaces.report.films import MAX_FILMED, film
from workspaces.report.runs import FINAL, Run
from workspaces.report.tables import Result, quantity_name

MAX_SETTINGS = 12
MAX_VIDEO_BYTES = 32 << 20
"""Largest size of all videos inside one page, which browsers hold in memory. The worst episodes come first; others are
linked."""

OUTCOMES = {"failure": "#D55E00", "near miss": "#E69F00", "success": "#0072B2", "not judged": "#7A5195"}
"""Outcomes of an episode with their colours. "not judged": the environment does not define success."""

SCALE = 0.4
"""Scale of the outlines on the map. At full size, fifty of them hide each other."""

OVERRIDDEN = ("run_dir", "env_runner.start_seed", "env_runner.n_episodes", "env_runner.n_videos", "logger",
              "workspace", "checkpoint", "hydra")  # fmt: skip
"""Keys that a replay sets itself, or that do not change its outcome."""


@dataclass(frozen=True)
class Card:
    """One episode. `bar` is its reward as a share of the bar's length. `quantities`: the environment's own, at the end.

    `video` is inside the page. If there are too many, `video_link` points to it.
    """

    id: str
    seed: int
    outcome: str
    max_reward: float
    bar: float
    quantities: dict[str, float]
    length: int
    command: str
    video: str | None
    video_link: str | None


@dataclass(frozen=True)
class Sheet:
    """One setting's first training seed: the map as an SVG element, if its task has one, and its episodes, worst first.

    starts: noun for the outlines on the map.
    """

    name: str
    run: Run
    map: str | None
    starts: str | None
    cards: list[Card]

    @property
    def judged(self) -> bool:
        """Whether the environment defines success."""
        return all(card.outcome != "not judged" for card in self.cards)

    @property
    def counts(self) -> dict[str, int]:
        ends = [card.outcome for card in self.cards]
        return {outcome: ends.count(outcome) for outcome in outcomes(self.run.task, self.judged)}


def outcomes(task: Task, judged: bool) -> list[str]:
    """Possible outcomes of an episode. judged: whether the environment defines success."""
    if not judged:
        return ["not judged"]
    return ["failure", "near miss", "success"] if task.near_miss is not None else ["failure", "success"]


def best_of(results: Iterable[Result]) -> list[Result]:
    """Settings by score, task by task: scores of different tasks say nothing about each other."""
    ordered: list[Result] = sorted(results, key=lambda r: -r.score.value)
    return sorted(ordered, key=lambda r: [one.protocol.task for one in ordered].index(r.protocol.task))


def sheets(
    results: Iterable[Result], folder: Path, trusted: Collection[str] = (), n_films: int = MAX_FILMED
) -> list[Sheet]:
    """A sheet for each of the best settings, for a page in `folder`. Missing videos are made in <folder>/videos, of the
    `n_films` worst episodes of each setting.

    It makes a figure, so call it inside `figures.style()`. `trusted` packages are named in the commands, too.
    """
    best = best_of(results)[:MAX_SETTINGS]
    films = film([result.runs[0] for result in best], folder / "videos", n_films)
    left = MAX_VIDEO_BYTES
    made = []
    for number, result in enumerate(best):
        run = result.runs[0]
        cards = []
        for row in sorted(run.episodes, key=lambda row: (row["max_reward"], row["seed"])):
            file = run.video(row["seed"]) or films.get((run.path, row["seed"]))
            left -= file.stat().st_size if file else 0
            link = os.path.relpath(file, folder) if file else None
            video = embedded(file) if file and left >= 0 else None
            cards.append(_card(run, row, number, link, video, replay(run, row["seed"], trusted)))
        scenes = {card.seed: scene for card in cards if (scene := run.task.scene(card.seed)) is not None}
        name = f"{result.label} · {run.replicate} · {result.protocol}"
        starts = next(iter(scenes.values())).name if scenes else None
        made.append(Sheet(name, run, _map(cards, scenes) if scenes else None, starts, cards))
    return made


def outcome_of(row: dict, near_miss: float | None) -> str:
    """One of `OUTCOMES`."""
    if row["success"] is None:
        return "not judged"
    near = near_miss is not None and row["max_reward"] >= near_miss
    return "success" if row["success"] else "near miss" if near else "failure"


def embedded(file: Path) -> str:
    """The video as the source of an element of the page."""
    return f"data:video/mp4;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _card(run: Run, row: dict, number: int, link: str | None, video: str | None, command: str) -> Card:
    return Card(
        id=f"episode-{number}-{row['seed']}",
        seed=row["seed"],
        outcome=outcome_of(row, run.task.near_miss),
        max_reward=row["max_reward"],
        bar=_bar(row["max_reward"], [other["max_reward"] for other in run.episodes]),
        quantities={quantity_name(key): value for key, value in row.items() if key.startswith(FINAL)},
        length=row["length"],
        command=command,
        video=video,
        video_link=link,
    )


def _bar(reward: float, rewards: list[float]) -> float:
    """The reward as a share of 1 if rewards are shares, else of the range from worst to best."""
    low, high = min(0.0, *rewards), max(1.0, *rewards)
    return (reward - low) / (high - low)


def replay(run: Run, seed: int, trusted: Collection[str] = ()) -> str:
    """The command that rolls the same policy out from `seed` again, and records it."""
    typed = run.record.get("overrides", []) if run.verb == "evaluate" else []
    kept = [o for o in typed if not o.lstrip("+~").startswith(OVERRIDDEN) or o.startswith("workspace.")]
    known = {typed.partition("=")[0] for typed in kept}
    if run.verb == "evaluate" and "overrides" not in run.record:
        kept.append(f"scheduler.num_inference_steps={run.config['scheduler']['num_inference_steps']}")
    steps = run.protocol.max_steps
    if isinstance(steps, int) and "env_runner.max_steps" not in known:
        kept.append(f"env_runner.max_steps={steps}")
    policy = run.checkpoint or (run.path / "checkpoints/last.pt" if run.verb == "train" else None)
    new = [f"env_runner.start_seed={seed}", "env_runner.n_episodes=1", "env_runner.n_videos=1", "logger.mode=disabled"]
    of = [override("checkpoint", policy)] if policy else []
    if trusted and "trust" not in known:
        kept.append(f"trust=[{','.join(trusted)}]")
    return command_line("workspace=evaluate", *of, *kept, *new)


def _map(cards: list[Card], scenes: dict[int, Scene]) -> str:
    left, right, bottom, top = next(iter(scenes.values())).bounds
    figure = Figure(figsize=(4, 4 * abs(top - bottom) / abs(right - left)))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
    axes.axis("off")
    # The goal in grey: its full size faintly, and at the scale of the outlines.
    for goal in _common_goal([*scenes.values()]):
        axes.add_patch(Polygon(goal, facecolor="#8c959f", edgecolor="none", alpha=0.28, clip_on=False))
        axes.add_patch(Polygon(_shrunk(goal), facecolor="#8c959f", edgecolor="none", alpha=0.7, clip_on=False))
    for card in cards[::-1]:  # the worst lie on top
        colour = OUTCOMES[card.outcome]
        for outline in scenes[card.seed].starts if card.seed in scenes else ():
            look: dict[str, Any] = {"facecolor": f"{colour}59", "edgecolor": colour, "lw": 1, "joinstyle": "round"}
            patch = Polygon(_shrunk(outline), clip_on=False, **look)
            patch.set_url(f"#{card.id}")
            axes.add_patch(patch)
    return _with_titles(re.sub(r' id="[^"]*"', "", svg(figure)), cards)


def _common_goal(scenes: list[Scene]) -> Sequence[np.ndarray]:
    """The common goal of all episodes; empty if they differ."""
    goals = [[*map(np.asarray, scene.goal)] for scene in scenes]
    same = all(len(goal) == len(goals[0]) and all(map(np.array_equal, goal, goals[0])) for goal in goals)
    return scenes[0].goal if same else ()


def _with_titles(drawing: str, cards: list[Card]) -> str:
    """Adds titles to the blocks, for tooltips and screen readers."""
    titles = {card.id: f"seed {card.seed}: {card.outcome}, best reward {card.max_reward:.2f}" for card in cards}

    def link(found: re.Match[str]) -> str:  # matplotlib's opens another window
        return f'<a href="#{found[1]}"><title>{titles[found[1]]}</title>'

    return re.sub(r'<a [^>]*href="#([^"]*)"[^>]*>', link, drawing)


def _shrunk(outline: np.ndarray) -> np.ndarray:
    centre = (outline.min(0) + outline.max(0)) / 2
    return centre + SCALE * (outline - centre)

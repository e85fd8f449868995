"""Pictures of demonstrations."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.pictures import render_episode
from dp.tasks.pusht.store import ReplayBuffer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

N_PATHS = 40
N_ROWS, N_COLUMNS = 8, 10
N_GIFS = 4
MARGIN = 14
"""Height in pixels of the line above each row of the contact sheet."""


def save_pictures(buffer: ReplayBuffer, folder: Path) -> str:
    """Writes contact_sheet.png, paths.png and GIFs of episodes evenly spread over `buffer`. Returns where.

    "state", "action" and "noise" must have been read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.unique(np.linspace(0, buffer.n_episodes - 1, N_ROWS).round().astype(int)).tolist()
    episodes = {number: render_episode(buffer.executed(number)) for number in numbers}
    _contact_sheet(buffer, episodes).save(folder / "contact_sheet.png")
    _plot_paths(buffer, folder / "paths.png")
    for number in numbers[:: max(1, len(numbers) // N_GIFS)][:N_GIFS]:
        frames = [Image.fromarray(image).resize((288, 288)) for image in episodes[number]]
        step_ms = 1000 // PushTEnv.control_hz
        file = folder / f"episode-{number}.gif"
        frames[0].save(file, save_all=True, append_images=frames[1:], duration=step_ms, loop=0)
    return str(folder)


def _contact_sheet(buffer: ReplayBuffer, episodes: dict[int, np.ndarray]) -> Image.Image:
    """One row per episode, from its first frame to its last."""
    size = next(iter(episodes.values())).shape[1]
    sheet = Image.new("RGB", (N_COLUMNS * (size + 2), len(episodes) * (size + MARGIN)), "white")
    draw, from_seed = ImageDraw.Draw(sheet), buffer.from_seed
    for row, (number, images) in enumerate(episodes.items()):
        top = row * (size + MARGIN)
        seed = f", seed {buffer.seeds[number]}" if from_seed[number] else ""
        draw.text((2, top), f"episode {number}{seed}, {len(images)} steps", fill="black")
        for column, frame in enumerate(np.linspace(0, len(images) - 1, N_COLUMNS).round().astype(int)):
            sheet.paste(Image.fromarray(images[frame]), (column * (size + 2), top + MARGIN))
    return sheet


def _plot_paths(buffer: ReplayBuffer, file: Path) -> None:
    """Draws the paths of agent and block in a readable number of episodes, and the agent's speed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    agent_axes, block_axes, speed_axes = figure.subplots(1, 3)
    pieces = np.split(buffer.arrays["state"], buffer.episode_ends[:-1])
    drawn = pieces[:: max(1, len(pieces) // N_PATHS)]
    _plot_path(agent_axes, [piece[:, :2] for piece in drawn], f"Paths of the agent, {len(drawn)} episodes")
    _plot_path(block_axes, [piece[:, 2:4] for piece in drawn], f"Paths of the block, {len(drawn)} episodes")
    speed = np.concatenate([np.linalg.norm(np.diff(piece[:, :2], axis=0), axis=1) for piece in pieces])
    speed_axes.hist(speed, bins=60, range=(0, 40), weights=np.full(len(speed), 100 / max(1, len(speed))))
    speed_axes.axvline(np.median(speed) if len(speed) else 0, color="#24292f", linewidth=1, linestyle="--")
    hertz = f"px per control step (at {PushTEnv.control_hz} Hz)"
    speed_axes.set(title="Speed of the agent; dashed: median", xlabel=hertz, ylabel="% of control steps")
    figure.savefig(file, dpi=110, facecolor="white", transparent=False)


def _plot_path(axes: "Axes", paths: list[np.ndarray], title: str) -> None:
    """Draws paths in the workspace over the goal, with a dot at the start of each."""
    env = PushTEnv([])
    env.reset(0)
    axes.fill(*env.outlines()[1].T, color="#8c959f", alpha=0.35, linewidth=0, label="goal", zorder=1)
    for number, path in enumerate(paths):
        axes.plot(*path.T, linewidth=0.8, alpha=0.6, color=f"C{number % 8}")
        axes.plot(*path[0], "o", markersize=2.5, color=f"C{number % 8}")
    axes.set(xlim=(0, 512), ylim=(512, 0), aspect="equal", title=title, xlabel="x, px", ylabel="y, px")
    axes.legend(loc="lower right")

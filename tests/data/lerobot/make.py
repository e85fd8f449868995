"""Makes the two data sets next to this file with LeRobot itself: .venv-lerobot/bin/python tests/data/lerobot/make.py

They were made with lerobot 0.4.4: `image` keeps its pictures as PNG files in parquet, `video` as AV1.
"""

import os
import shutil
from pathlib import Path

import numpy as np

LENGTHS = (7, 5, 9)
TASKS = ("Push the block.", "Push the block.", "Lift the block.")
SIZES = {"observation.images.top": (64, 64), "observation.images.wrist": (64, 96)}


def picture(episode: int, t: int, height: int, width: int) -> np.ndarray:
    """A smooth picture of its own for every frame, which a video codec keeps within a few grey levels."""
    y, x = np.mgrid[:height, :width]
    channels = [(2 * x + 9 * t) % 192 + 32, (2 * y + 40 * episode) % 192 + 32, 0 * x + 40 + 8 * t]
    return np.stack([np.clip(c, 0, 255) for c in channels], -1).astype(np.uint8)


def numbers(episode: int) -> dict[str, np.ndarray]:
    """State (T, 3) and action (T, 2) of an episode."""
    rng = np.random.default_rng(episode)
    length = LENGTHS[episode]
    return {
        "observation.state": rng.normal(size=(length, 3)).astype(np.float32),
        "action": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
    }


def make(root: Path, kind: str) -> None:
    """Writes the data set with pictures of this kind: image or video."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = ["height", "width", "channel"]
    features = {name: {"dtype": kind, "shape": (*size, 3), "names": names} for name, size in SIZES.items()}
    features |= {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
    }
    shutil.rmtree(root, ignore_errors=True)
    data = LeRobotDataset.create("dp/tiny", fps=10, features=features, root=root, use_videos=kind == "video")
    for episode, length in enumerate(LENGTHS):
        arrays = numbers(episode)
        for t in range(length):
            frame = {name: picture(episode, t, *size) for name, size in SIZES.items()}
            frame |= {name: array[t] for name, array in arrays.items()}
            frame |= {"next.reward": np.array([t], np.float32), "next.done": np.array([t == length - 1])}
            data.add_frame({**frame, "task": TASKS[episode]})
        data.save_episode()
    data.finalize()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    for kind in ("image", "video"):
        make(Path(__file__).parent / kind, kind)

"""What there is to say about a store of demonstrations, beside the official one."""

from collections import Counter
from pathlib import Path

import numpy as np

from dp.data import ReplayBuffer
from dp.data.replay_buffer import read_facts

OFFICIAL = {
    "episodes, frames": "206, 25650",
    "lengths (min, median, max)": "49, 122, 246 steps",
    "agent speed (median, mean, 95 %)": "7.9, 9.5, 22.2 px a step",
    "in contact": "46 % of frames",
    "final coverage (min, median, max)": "0.861, 0.897, 0.966",
    "successes": "3.4 %",
    "noise (standard deviation)": "0.0 px",
    "sources": "people",
}
"""The same of pusht_cchi_v7_replay.zarr; coverage and successes as its actions replay from seeds 0-205."""


def describe(path: Path) -> dict[str, str]:
    """Rows of a table: name -> what it is in the store at `path`, "-" where it does not say."""
    names = ["state", "noise", *(["n_contacts"] if (path / "data/n_contacts").is_dir() else [])]
    buffer = ReplayBuffer.load(path, names)
    facts = {name: values[: buffer.n_episodes] for name, values in read_facts(path).items()}
    lengths = np.diff(buffer.episode_ends, prepend=0)
    pieces = np.split(buffer.arrays["state"][:, :2], buffer.episode_ends[:-1])
    speed = np.concatenate([np.linalg.norm(np.diff(piece, axis=0), axis=1) for piece in pieces])
    coverage, contacts = facts.get("final_coverage"), buffer.arrays.get("n_contacts")
    told = {
        "episodes, frames": f"{buffer.n_episodes}, {len(buffer)}",
        "lengths (min, median, max)": f"{lengths.min()}, {np.median(lengths):.0f}, {lengths.max()} steps",
        "agent speed (median, mean, 95 %)": (
            f"{np.median(speed):.1f}, {speed.mean():.1f}, {np.percentile(speed, 95):.1f} px a step"
            if len(speed)
            else "-"
        ),
        "in contact": "-" if contacts is None else f"{(contacts > 0).mean():.0%} of frames".replace("%", " %"),
        "final coverage (min, median, max)": (
            "-" if coverage is None else f"{coverage.min():.3f}, {np.median(coverage):.3f}, {coverage.max():.3f}"
        ),
        "successes": f"{100 * facts['success'].mean():.1f} %" if "success" in facts else "-",
        "noise (standard deviation)": f"{buffer.arrays['noise'].std():.1f} px",
        "sources": ", ".join(f"{n} {s}" for s, n in Counter(facts["source"].tolist()).items()) if facts else "-",
    }
    assert told.keys() == OFFICIAL.keys()
    return told

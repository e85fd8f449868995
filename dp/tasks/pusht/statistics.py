"""Statistics of a store of demonstrations, compared with the official one."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tabulate import tabulate

from dp.data.formats.zarr import ZarrStore
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.store import ReplayBuffer, read_facts

TOLERANCE_PX = 1e-3

OFFICIAL = {
    "episodes, frames": "206, 25650",
    "lengths (min, median, max)": "49, 122, 246 steps",
    "agent speed (median, mean, 95 %)": "7.9, 9.5, 22.2 px per step",
    "in contact": "46 % of frames",
    "final coverage (min, median, max)": "0.861, 0.897, 0.966",
    "successes": "3.4 %",
    "noise (standard deviation)": "0.0 px",
    "sources": "people",
}
"""Statistics of pusht_cchi_v7_replay.zarr. Coverage and successes are those of its actions replayed from seeds
0-205."""


def describe(path: Path) -> dict[str, str]:
    """Rows of a table: name -> statistic of the store at `path`, "-" if it is unknown."""
    names = ["state", "noise", *(["n_contacts"] if "data/n_contacts" in ZarrStore(path).names else [])]
    buffer = ReplayBuffer.load(path, names)
    facts = read_facts(path)
    lengths = np.diff(buffer.episode_ends, prepend=0)
    pieces = np.split(buffer.arrays["state"][:, :2], buffer.episode_ends[:-1])
    speed = np.concatenate([np.linalg.norm(np.diff(piece, axis=0), axis=1) for piece in pieces])
    coverage, contacts = facts.get("final_coverage"), buffer.arrays.get("n_contacts")
    rows = {
        "episodes, frames": f"{buffer.n_episodes}, {len(buffer)}",
        "lengths (min, median, max)": f"{lengths.min()}, {np.median(lengths):.0f}, {lengths.max()} steps",
        "agent speed (median, mean, 95 %)": (
            f"{np.median(speed):.1f}, {speed.mean():.1f}, {np.percentile(speed, 95):.1f} px per step"
            if len(speed)
            else "-"
        ),
        "in contact": "-" if contacts is None else f"{(contacts > 0).mean():.0%} of frames".replace("%", " %"),
        "final coverage (min, median, max)": (
            "-" if coverage is None else f"{coverage.min():.3f}, {np.median(coverage):.3f}, {coverage.max():.3f}"
        ),
        "successes": f"{100 * facts['success'].mean():.1f} %" if "success" in facts else "-",
        "noise (standard deviation)": f"{buffer.arrays['noise'].std():.1f} px",
        "sources": ", ".join(f"{n} {s}" for s, n in Counter(facts["source"].tolist()).items())
        if "source" in facts
        else "-",
    }
    assert rows.keys() == OFFICIAL.keys()
    return rows


def contents(path: Path, store: ReplayBuffer, official: bool) -> Iterator[str]:
    """Yields the contents of a store, compared with the official one."""
    yield f"{path}: {store.n_episodes} episodes, {len(store)} frames"
    yield "the official demonstrations, bit for bit" if official else "not the official demonstrations"
    rows = [(name, value, OFFICIAL[name]) for name, value in describe(path).items()]
    yield from tabulate(rows, ["", "here", "official"], disable_numparse=True).splitlines()


def starts(path: Path, store: ReplayBuffer) -> Iterator[str]:
    """Compares the first states of the demonstrations with the environment's, and replays one of them."""
    env, starts = PushTEnv(["agent_pos"]), store.episode_starts
    state, action, noise = (store.arrays[name] for name in ("state", "action", "noise"))
    agreeing = 0
    facts = read_facts(path)
    said = "their number as a seed"
    if "seed" in facts:
        said = f"the stored {'initial state' if 'initial_state' in facts else 'seed'}"
    for initial_state, start in zip(store.initial_states, starts, strict=True):
        env.reset_to(initial_state)
        agreeing += bool(np.abs(env.state - state[start]).max() < TOLERANCE_PX)
    yield f"{agreeing} of {len(starts)} demonstrations start from {said}"
    if not store.from_seed.any():
        yield "  no seed of a demonstration is known: rollout/train_score is left out"
    elif not store.from_seed.all():
        yield f"  {store.from_seed.sum()} of these start as their seeds say; rollout/train_score leaves the others out"
    env.reset_to_observed(state[0])
    drift = 0.0
    for t in range(int(store.episode_ends[0]) - 1):
        env.step(action[t] + noise[t])
        drift = max(drift, float(np.abs(env.state - state[t + 1]).max()))
    yield f"demonstration 0 replayed: the state drifts by at most {drift:.1e} px"
    if drift > 1:
        raise ValueError("the environment deviates from the data: pip install gym-pusht==0.1.8 'pymunk<7'")

"""Fixtures: the official data set where it is found, and a small real one made with the environment."""

import os
import shutil
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # the reference for every "to the bit" here
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

from jaxtyping import install_import_hook

install_import_hook("dp", "beartype.beartype")  # every shape in a signature of dp/ is checked while testing

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import zarr  # noqa: E402

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parent.parent
OFFICIAL = Path(os.environ.get("DP_PUSHT_ZARR", REPOSITORY / "data/pusht/pusht_cchi_v7_replay.zarr"))


def pytest_report_header() -> str:
    if OFFICIAL.is_dir():
        return f"official PushT data: {OFFICIAL}"
    return f"official PushT data: NOT FOUND at {OFFICIAL}, tests that need it are skipped (set DP_PUSHT_ZARR)"


@pytest.fixture(scope="session")
def official_zarr() -> Path:
    """The official demonstrations: 206 episodes, 25,650 frames."""
    if not OFFICIAL.is_dir():
        pytest.skip(f"no official data at {OFFICIAL}: set DP_PUSHT_ZARR")
    return OFFICIAL


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Decoded images are cached here, not in the user's home; subprocesses inherit it."""
    folder = tmp_path_factory.mktemp("dp-cache")
    os.environ["DP_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def small_zarr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes of 24 to 39 frames in the official layout (zarr v2), recorded in the real environment."""
    from dp.tasks.pusht.env import PushTEnv

    states, actions, images, ends = [], [], [], []
    env = PushTEnv(["image", "agent_pos"])
    for seed in range(6):
        env.reset(seed)
        towards = np.random.default_rng(seed).uniform(100, 400, (8, 2))
        for step in range(24 + 3 * seed):
            action = towards[step // 6]
            states.append(env.state)
            images.append(env.observe()["image"])
            actions.append(action)
            env.step(action)
        ends.append(len(states))
    store = tmp_path_factory.mktemp("data") / "pusht_cchi_v7_replay.zarr"
    write_store(store, np.array(images), np.array(states), np.array(actions), np.array(ends))
    return store


def write_store(
    store: Path, images: np.ndarray, states: np.ndarray, actions: np.ndarray, episode_ends: np.ndarray
) -> None:
    """Writes the arrays as the official archive stores them: zarr v2, float32, chunks along time."""

    def write(name: str, values: np.ndarray, dtype: str, chunk: int) -> None:
        layout = {"shape": values.shape, "chunks": (chunk, *values.shape[1:]), "dtype": dtype}
        zarr.open_array(str(store / name), mode="w", **layout, zarr_format=2)[:] = values

    zarr.open_group(str(store), mode="w", zarr_format=2)
    for name, array, chunk in (("img", images, 32), ("state", states, 64), ("action", actions, 64)):
        write(f"data/{name}", array.astype(np.float32), "f4", chunk)
    write("meta/episode_ends", episode_ends, "i8", len(episode_ends))


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of the user's own (`tests/toylab`), its configurations, and a store of demonstrations."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(Path(__file__).parent / "toylab", folder / "toylab", ignore=shutil.ignore_patterns("__pycache__"))
    sys.path.insert(0, str(folder))
    try:
        from toylab.reach import ReachEnv
    finally:
        sys.path.remove(str(folder))
    rows, ends = [], []
    env = ReachEnv()
    for seed in range(6):
        env.reset(seed)
        for _ in range(10 + seed):
            action = 0.4 * (env.goal - env.joints)
            rows.append({**env.observe(), "action": action})
            env.step(action)
        ends.append(len(rows))
    store = zarr.open_group(str(folder / "demos.zarr"), mode="w")  # zarr's default format, and its default chunks
    for name in rows[0]:
        array = np.stack([row[name] for row in rows])
        store.create_array(f"data/{'hand' if name == 'wrist' else name}", data=array)
    store.create_array("meta/ends", data=np.array(ends))
    return folder

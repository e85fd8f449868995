"""Images of what was stored without them are those that the environment showed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dp.data.recording import DemonstrationStore
from dp.tasks.pusht import pictures
from dp.tasks.pusht.demonstration import FACTS, FRAMES, Demonstration
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.store import ReplayBuffer
from tests.workspaces.wander import Wander


def shown(demonstration: Demonstration) -> np.ndarray:
    """Frame by frame, from one environment that runs through."""
    env, images = PushTEnv(["image"]), []
    env.reset_to(demonstration.initial_state)
    for action, noise in zip(demonstration.action, demonstration.noise, strict=True):
        images.append(env.observe()["image"])
        env.step(action + noise)
    return np.array(images)


@pytest.fixture(scope="module")
def demonstrations() -> list[Demonstration]:
    made = [Wander(n_steps=60)(seed) for seed in (1001, 1002, 1003)]
    return [d for d in made if d is not None]


def test_whole_episodes_are_bit_equal(demonstrations: list[Demonstration], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PushTEnv, "reset_to_observed", None)  # by running again, not from rounded states
    for d in demonstrations:
        images = pictures.render_episode((d.initial_state, d.state, d.action + d.noise))
        np.testing.assert_array_equal(images, shown(d))


def test_from_states_alone_too_where_the_episode_goes_another_way(demonstrations: list[Demonstration]) -> None:
    d = demonstrations[0]
    elsewhere = pictures.render_episode((d.initial_state + 1, d.state, d.action + d.noise))
    assert (elsewhere != shown(d)).mean() < 1e-4  # a corner on the edge of a pixel


def test_a_store_without_images_has_them_once_and_for_all(
    demonstrations: list[Demonstration], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DemonstrationStore(tmp_path / "a.zarr", {}, FRAMES, FACTS) as store:
        store.append(demonstrations, "wander")
    expected = np.concatenate([shown(d) for d in demonstrations])
    for _ in range(2):
        images = ReplayBuffer.load(tmp_path / "a.zarr", ["img"], tmp_path / "cache").arrays["img"]
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, expected)
        monkeypatch.setattr("dp.tasks.pusht.store.in_processes", None)  # the second time it is not asked
    with DemonstrationStore(tmp_path / "a.zarr", {}, FRAMES, FACTS) as store:
        store.append(demonstrations[:1], "wander")
    monkeypatch.undo()
    images = ReplayBuffer.load(tmp_path / "a.zarr", ["img"], tmp_path / "cache").arrays["img"]
    assert len(images) == len(expected) + len(demonstrations[0])


def test_worker_processes_start_without_torch() -> None:
    code = "import sys, dp.rollouts.pool, dp.tasks.pusht.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0

from pathlib import Path

import numpy as np
import pytest
import zarr

from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.store import ReplayBuffer


@pytest.fixture(scope="module")
def official(official_zarr: Path) -> ReplayBuffer:
    return ReplayBuffer.load(official_zarr, ["state"])


def test_keypoints_are_those_of_the_data_set(official: ReplayBuffer, official_zarr: Path) -> None:
    stored = zarr.open(str(official_zarr / "data/keypoint"), mode="r")[:]
    made = pusht.low_dim_obs(official.arrays["state"], ["keypoint"])["keypoint"]
    assert (made.shape, made.dtype) == (stored.shape, np.float32)
    error = np.abs(made - stored).max((1, 2))  # of the worst coordinate of a frame
    assert np.median(error) < 1e-3
    assert error.max() < 3  # in contact the stored ones lag


def test_demonstrations_start_from_seeds_0_to_205(official: ReplayBuffer) -> None:
    env, started = PushTEnv(["agent_pos"]), []
    for seed in range(206):
        env.reset(seed)
        started.append(env.state)
    np.testing.assert_allclose(started, official.arrays["state"][official.episode_starts], atol=1e-3)


def test_initial_states_of_the_test_seeds_differ_and_lie_in_the_papers_ranges() -> None:
    states = np.array([pusht.initial_state(seed) for seed in range(100_000, 100_050)])
    np.testing.assert_array_equal(states[3], pusht.initial_state(100_003))
    assert len(np.unique(states, axis=0)) == 50
    assert ((states[:, :2] >= 50) & (states[:, :2] < 450)).all()
    assert ((states[:, 2:4] >= 100) & (states[:, 2:4] < 400)).all()


def test_observations_of_a_known_state() -> None:
    state = np.array([[10, 20, 100, 200, np.pi / 2]], np.float32)
    obs = pusht.low_dim_obs(state, ["block_pose", "image", "agent_pos", "keypoint"])
    assert list(obs) == ["block_pose", "agent_pos", "keypoint"]
    np.testing.assert_allclose(obs["agent_pos"], [[10, 20]])
    np.testing.assert_allclose(obs["block_pose"], [[100, 200, 0, 1]], atol=1e-6)
    x, y = pusht.KEYPOINTS.T
    np.testing.assert_allclose(obs["keypoint"][0], np.stack([100 - y, 200 + x], 1), rtol=1e-6)  # a quarter turn


def test_one_state_has_the_same_observations_as_a_batch_of_it() -> None:
    states = np.random.default_rng(0).uniform(0, 500, (2, 3, 5))
    batch = pusht.low_dim_obs(states, ["keypoint", "block_pose"])
    assert (batch["keypoint"].shape, batch["block_pose"].shape) == ((2, 3, 9, 2), (2, 3, 4))
    for name, x in pusht.low_dim_obs(states[1, 2], ["keypoint", "block_pose"]).items():
        np.testing.assert_array_equal(x, batch[name][1, 2])


def test_unknown_observation_is_named_beside_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no observation \['depth'\], expected some of \['image', 'agent_pos', .*"):
        pusht.low_dim_obs(np.zeros(5), ["agent_pos", "depth"])


def test_the_mirror_image_of_a_demonstration_is_one(official_zarr):
    """The environment, begun in the mirrored state and given the mirrored actions, lives the mirrored episode."""
    buffer = ReplayBuffer.load(official_zarr, ["state", "action", "img"])
    state, action = buffer.arrays["state"].astype(np.float64), buffer.arrays["action"]
    env = PushTEnv(["image"])
    for start in buffer.episode_starts[:5]:
        env.reset_to_observed(pusht.mirror("state", state[start]))
        mirrored = pusht.mirror("img", buffer.arrays["img"][start]).astype(int)
        assert np.abs(env.observe()["image"].astype(int) - mirrored).mean() < 2  # half a pixel at the edges
        for t in range(start, start + 40):
            env.step(pusht.mirror("action", action[t]))
        reached, expected = env.state, pusht.mirror("state", state[start + 40])
        assert np.abs(reached[:4] - expected[:4]).max() < 1
        assert abs(np.angle(np.exp(1j * (reached[4] - expected[4])))) < 0.02


def test_mirroring_twice_changes_nothing(official_zarr):
    buffer = ReplayBuffer.load(official_zarr, ["state", "action", "img"])
    for name, array in buffer.arrays.items():
        once = pusht.mirror(name, array[:500])
        assert not np.allclose(once, array[:500])
        np.testing.assert_allclose(pusht.mirror(name, once), array[:500], atol=1e-4)

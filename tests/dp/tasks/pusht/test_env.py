"""The adapter is the stock simulator, and the stock simulator is the one the data were recorded in."""

from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import zarr
from gym_pusht.envs.pusht import PushTEnv as GymPushT

from dp.rollouts.episode import Episode
from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.env import PushTEnv


def count_renders(env: PushTEnv, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Appends a word for every picture that the simulator draws from now on."""
    drawn: list[str] = []
    draw: Callable = env._env._render

    def counting(*args: object, **kwargs: object) -> np.ndarray:
        drawn.append("picture")
        return draw(*args, **kwargs)

    monkeypatch.setattr(env._env, "_render", counting)
    return drawn


def test_pixels_states_and_rewards_are_the_stock_environments() -> None:
    stock: GymPushT = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos").unwrapped
    env = PushTEnv(["image", "agent_pos"])
    rng = np.random.default_rng(0)
    for seed in (3, 100000):
        observed, _ = stock.reset(options={"reset_to_state": pusht.initial_state(seed)})
        env.reset(seed)
        start = env.state
        for step in range(40):
            obs = env.observe()
            assert obs["image"].dtype == np.uint8
            np.testing.assert_array_equal(obs["image"], observed["pixels"])
            np.testing.assert_array_equal(obs["agent_pos"], observed["agent_pos"].astype(np.float32))
            np.testing.assert_array_equal(
                env.state, [*stock.agent.position, *stock.block.position, stock.block.angle % (2 * np.pi)]
            )
            # Into the block, then anywhere. The stock environment gets a numpy action, the adapter makes a Vec2d of it.
            action = np.array(env.state[2:4]) if step < 15 else rng.uniform(50, 450, 2)
            observed, reward, done, _, info = stock.step(action)
            env.step(action)
            assert (env.reward, env.coverage) == pytest.approx((reward, info["coverage"]), abs=1e-11)
            assert env.success == done
        assert np.abs(env.state - start)[2:4].max() > 5, "there was no contact"


def test_paper_seeds_start_demonstrations_and_their_actions_relive_them(official_zarr: Path) -> None:
    data = zarr.open_group(str(official_zarr), mode="r")
    ends = data["meta/episode_ends"][:6]
    states, actions = data["data/state"][: ends[-1]], data["data/action"][: ends[-1]]
    env = PushTEnv([])
    for episode, start in enumerate([0, *ends[:-1]]):
        env.reset(episode)
        for t in range(start, start + 50):
            np.testing.assert_allclose(env.state, states[t], atol=1e-3)
            env.step(actions[t])


def test_stored_images_are_drawn_again_from_their_states(official_zarr: Path) -> None:
    data = zarr.open_group(str(official_zarr), mode="r")
    env = PushTEnv(["image"])
    for frame in (0, 77, 160, 5000, 5100, 20000, 20040):
        state = data["data/state"][frame]
        env.reset_to_observed(state.astype(np.float64))
        np.testing.assert_allclose(env.state, state, atol=1e-6)
        np.testing.assert_array_equal(env.observe()["image"], data["data/img"][frame])


def test_the_papers_test_seeds_start_with_little_of_the_goal_covered() -> None:
    env = PushTEnv([])
    coverages = []
    for seed in range(100000, 100050):
        env.reset(seed)
        coverages.append(env._env._get_coverage())
    assert np.mean(coverages) == pytest.approx(0.069, abs=0.0005)


def test_reset_forgets_the_last_episode() -> None:
    used, fresh = PushTEnv(["image"]), PushTEnv(["image"])
    used.reset(1)
    for _ in range(10):
        used.step(used.state[2:4])
    for env in (used, fresh):
        env.reset(2)
    assert (used.coverage, used.reward, used.success) == (0, 0, False)
    np.testing.assert_array_equal(used.state, fresh.state)
    np.testing.assert_array_equal(used.render(), fresh.render())
    for env in (used, fresh):
        env.step(np.array([100.0, 200.0]))
    np.testing.assert_array_equal(used.state, fresh.state)


def test_done_is_coverage_above_95_percent_and_reward_is_capped() -> None:
    env = PushTEnv([])
    outcomes = set()
    for shift in (0, 1, 2, 3, 5, 10):
        env.reset_to_observed(np.array([60.0, 60.0, 256.0 + shift, 256.0, np.pi / 4]))
        env.step(np.array([60.0, 60.0]))
        assert env.success == (env.coverage > 0.95)
        assert env.reward == pytest.approx(min(1, env.coverage / 0.95))
        outcomes.add(env.success)
    assert outcomes == {True, False}


def test_observations_have_the_asked_names_types_and_order() -> None:
    env = PushTEnv(["keypoint", "image", "block_pose", "agent_pos"])
    env.reset(0)
    described = [(name, x.shape, x.dtype) for name, x in env.observe().items()]
    assert described == [
        ("keypoint", (9, 2), np.float32),
        ("image", (96, 96, 3), np.uint8),
        ("block_pose", (4,), np.float32),
        ("agent_pos", (2,), np.float32),
    ]


def test_nothing_is_drawn_for_a_policy_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    env = PushTEnv(["agent_pos"])
    drawn = count_renders(env, monkeypatch)
    episode = Episode(env, n_obs_steps=2)
    episode.reset(seed=0, max_steps=300, record=False)
    episode.step(np.full((8, 2), 200.0))
    assert drawn == []


@pytest.mark.parametrize(("n_obs_steps", "drawn_a_chunk"), [(1, 1), (2, 2), (3, 3)])
def test_only_what_the_policy_sees_is_drawn(
    n_obs_steps: int, drawn_a_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = PushTEnv(["image", "agent_pos"])
    drawn = count_renders(env, monkeypatch)
    episode = Episode(env, n_obs_steps)
    episode.reset(seed=0, max_steps=16, record=False)
    drawn.clear()
    episode.step(np.full((8, 2), 200.0))
    assert len(drawn) == drawn_a_chunk

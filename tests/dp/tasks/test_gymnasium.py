"""Any gymnasium environment is an `Env`: two that other people wrote."""

import numpy as np
import pytest

from dp.rollouts.episode import Episode
from dp.tasks.env import Env
from dp.tasks.gymnasium import GymnasiumEnv


def pendulum(**changes: object) -> GymnasiumEnv:
    return GymnasiumEnv(**{"obs_names": ["state"], "id": "Pendulum-v1", "obs": {"state": "."}, **changes})


def pusht(**changes: object) -> GymnasiumEnv:
    kwargs = {"obs_type": "pixels_agent_pos"}
    return GymnasiumEnv(
        **{
            "obs_names": ["image", "agent_pos"],
            "id": "gym_pusht:gym_pusht/PushT-v0",
            "kwargs": kwargs,
            "obs": {"image": "pixels"},
            "success": "is_success",
            "quantities": ["coverage"],
            **changes,
        }
    )


def test_it_has_what_an_env_has() -> None:
    for env in (pendulum(), pusht()):
        env.reset(0)
        assert isinstance(env, Env)
        picture = env.render()
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3


def test_observations_have_the_declared_names_and_raw_types() -> None:
    env = pusht()
    env.reset(3)
    obs = env.observe()
    assert list(obs) == ["image", "agent_pos"]
    assert (obs["image"].dtype, obs["image"].shape) == (np.uint8, (96, 96, 3))
    assert (obs["agent_pos"].dtype, obs["agent_pos"].shape) == (np.float32, (2,))
    rendered = pendulum(obs_names=["image"], obs={"image": "render()"})
    rendered.reset(0)
    assert rendered.observe()["image"].shape == (500, 500, 3)


def test_the_same_seed_gives_the_same_episode_and_another_another() -> None:
    def episode(seed: int) -> list[float]:
        env = pendulum()
        env.reset(seed)
        rewards = []
        for step in range(20):
            env.step(np.array([np.sin(step)], np.float32))
            rewards.append(env.reward)
        return rewards

    assert episode(4) == episode(4)
    assert episode(4) != episode(5)


def test_success_and_quantities_are_read_from_info() -> None:
    env = pusht()
    env.reset(0)
    assert (env.success, env.reward) == (False, 0.0)
    gym = env._env.unwrapped
    gym.reset(options={"reset_to_state": [60.0, 60.0, 256.0, 256.0, np.pi / 4]})
    assert not env.success
    gym._set_state([60.0, 60.0, 256.0, 256.0, np.pi / 4])
    env.step(np.array([60.0, 60.0]))
    assert env.success == env._info["is_success"]
    assert env.info() == {"coverage": pytest.approx(env._info["coverage"])}


def test_a_time_limit_ends_the_episode_and_success_is_not_defined_without_its_key() -> None:
    episode = Episode(pendulum(), n_obs_steps=2)
    episode.reset(seed=0, max_steps=1000, record=False)
    chunk = episode.step(np.zeros((1000, 1), np.float32))
    assert len(chunk.rewards) == 200
    assert (chunk.ended, chunk.success) == (True, None)


def test_actions_are_clipped_to_the_bounds() -> None:
    far, limit = pendulum(), pendulum()
    for env, action in ((far, 50.0), (limit, 2.0)):
        env.reset(1)
        env.step(np.array([action], np.float32))
    np.testing.assert_array_equal(far.observe()["state"], limit.observe()["state"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": "NoSuchThing-v0"}, "env.id=NoSuchThing-v0 cannot be made"),
        ({"id": "CartPole-v1"}, "expected a one-dimensional Box"),
        ({"obs": {"state": "angle"}}, "no observation 'angle'; the environment has one array"),
        ({"success": "solved"}, "info has no 'solved'"),
    ],
)
def test_mistakes_are_named(changes: dict, said: str) -> None:
    def use() -> None:
        env = pendulum(**changes)
        env.reset(0)
        env.step(np.zeros(1, np.float32))
        assert env.success is None
        env.observe()

    with pytest.raises(ValueError, match=said):
        use()


def test_actions_of_another_size_are_refused() -> None:
    env = pendulum()
    env.reset(0)
    with pytest.raises(ValueError, match=r"shape \(2,\), but the environment takes \(1,\)"):
        env.step(np.zeros(2, np.float32))

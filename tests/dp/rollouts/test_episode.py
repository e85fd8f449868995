"""An episode shows the policy the last To observations and ends when it should."""

import numpy as np
import pytest

from dp.rollouts.episode import Chunk, Episode
from dp.tasks.pusht.env import PushTEnv

SOLVED = np.array([60.0, 60.0, 256.0, 256.0, np.pi / 4])  # the block on its goal


def actions(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(100, 400, (n, 2))


def watched(steps: np.ndarray, seed: int) -> list[np.ndarray]:
    """Positions of the agent at reset and after each step, seen by an environment of its own."""
    env = PushTEnv(["agent_pos"])
    env.reset(seed)
    seen = [env.observe()["agent_pos"]]
    for action in steps:
        env.step(action)
        seen.append(env.observe()["agent_pos"])
    return seen


def run(episode: Episode, steps: np.ndarray, n_action_steps: int) -> list[Chunk]:
    return [episode.step(steps[t : t + n_action_steps]) for t in range(0, len(steps), n_action_steps)]


@pytest.mark.parametrize("n_obs_steps", [1, 2, 4])
def test_the_first_observation_stands_for_those_before_it(n_obs_steps: int) -> None:
    chunk = Episode(PushTEnv(["agent_pos"]), n_obs_steps).reset(seed=5, max_steps=10, record=False)
    (first,) = watched(actions(0), seed=5)
    np.testing.assert_array_equal(chunk.obs["agent_pos"], np.stack([first] * n_obs_steps))
    assert (chunk.rewards, chunk.ended, chunk.frames) == ([], False, [])


@pytest.mark.parametrize(("n_obs_steps", "n_action_steps"), [(1, 8), (2, 8), (2, 1), (3, 2), (8, 8)])
def test_chunks_show_the_last_observations(n_obs_steps: int, n_action_steps: int) -> None:
    episode, steps = Episode(PushTEnv(["agent_pos"]), n_obs_steps), actions(16)
    episode.reset(seed=5, max_steps=100, record=False)
    seen = watched(steps, seed=5)
    seen = [seen[0]] * (n_obs_steps - 1) + seen
    for number, chunk in enumerate(run(episode, steps, n_action_steps), start=1):
        end = n_obs_steps + number * n_action_steps
        np.testing.assert_array_equal(chunk.obs["agent_pos"], np.stack(seen[end - n_obs_steps : end]))
        assert len(chunk.rewards) == n_action_steps


def test_an_episode_ends_after_max_steps_even_within_a_chunk() -> None:
    episode = Episode(PushTEnv(["agent_pos"]), n_obs_steps=2)
    episode.reset(seed=0, max_steps=19, record=False)
    chunks = run(episode, actions(24), 8)
    assert [len(c.rewards) for c in chunks] == [8, 8, 3]
    assert [c.ended for c in chunks] == [False, False, True]
    assert chunks[-1].obs == {}
    assert not chunks[-1].success


def test_an_episode_ends_at_once_when_the_task_is_solved() -> None:
    episode = Episode(PushTEnv(["agent_pos"]), n_obs_steps=2)
    episode.reset(seed=0, max_steps=300, record=True)
    episode.env.reset_to_observed(SOLVED)
    chunk = episode.step(np.tile(SOLVED[:2], (8, 1)))
    assert (chunk.ended, chunk.success, chunk.rewards, chunk.obs) == (True, True, [1.0], {})
    assert chunk.info["coverage"] > 0.95
    assert len(chunk.frames) == 1


def test_rewards_and_coverage_are_the_environments() -> None:
    episode, env, steps = Episode(PushTEnv(["agent_pos"]), 2), PushTEnv(["agent_pos"]), actions(16, seed=1)
    episode.reset(seed=0, max_steps=300, record=False)
    env.reset(0)
    expected = []
    for action in steps:
        env.step(action)
        expected.append(env.reward)
    chunks = run(episode, steps, 8)
    assert [r for c in chunks for r in c.rewards] == expected
    assert max(expected) > 0
    assert chunks[-1].info == {"coverage": env.coverage}


def test_pictures_are_taken_only_where_asked_for() -> None:
    episode = Episode(PushTEnv(["agent_pos"]), n_obs_steps=2)
    for record in (True, False):
        chunks = [episode.reset(seed=0, max_steps=10, record=record), *run(episode, actions(16), 8)]
        assert [len(c.frames) for c in chunks] == ([1, 8, 2] if record else [0, 0, 0])
        assert all(picture.shape == (384, 384, 3) for c in chunks for picture in c.frames)


def test_a_second_episode_remembers_nothing_of_the_first() -> None:
    used, fresh = Episode(PushTEnv(["agent_pos"]), 2), Episode(PushTEnv(["agent_pos"]), 2)
    used.reset(seed=1, max_steps=8, record=False)
    used.step(actions(8))
    for episode in (used, fresh):
        episode.reset(seed=2, max_steps=8, record=False)
    first, second = used.step(actions(4)), fresh.step(actions(4))
    assert first.rewards == second.rewards
    np.testing.assert_array_equal(first.obs["agent_pos"], second.obs["agent_pos"])


def failing(after: int, **faults: object) -> type:
    """An environment whose methods change after so many steps."""

    class Failing(PushTEnv):
        steps = 0

        def step(self, action: np.ndarray) -> None:
            super().step(action)
            type(self).steps += 1
            if type(self).steps == after:
                for name, fault in faults.items():
                    setattr(type(self), name, fault)

    return Failing


def raising(*_: object) -> None:
    raise KeyError("motor")


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"step": raising}, r"fails in step\(action\) in the episode of seed 7: KeyError: 'motor'"),
        ({"observe": raising}, r"fails in observe\(\) in the episode of seed 7"),
        ({"render": raising}, r"fails in render\(\) in the episode of seed 7"),
        ({"reward": property(raising)}, "fails in reward, success or terminated in the episode of seed 7"),
        ({"info": raising}, r"fails in info\(\) in the episode of seed 7"),
        ({"reward": float("nan")}, "reward is nan in step 3 of the episode of seed 7"),
        ({"reward": float("-inf")}, "reward is -inf in step 3 of the episode of seed 7"),
        (
            {"observe": lambda self: {"agent_pos": np.full(2, np.nan)}},
            "agent_pos is not finite in the episode of seed 7",
        ),
        (
            {"observe": lambda self: {"agent_pos": np.zeros(3)}},
            r"changes its shape from \(2,\) to \(3,\) in the episode",
        ),
    ],
)
def test_a_fault_of_the_environment_is_named_with_its_seed(faults: dict[str, object], said: str) -> None:
    episode = Episode(failing(3, **faults)(["agent_pos"]), n_obs_steps=2)
    episode.reset(seed=7, max_steps=20, record=True)
    with pytest.raises(ValueError, match=said):
        run(episode, actions(16), 8)


def test_an_episode_that_cannot_begin_is_named() -> None:
    episode = Episode(type("Broken", (PushTEnv,), {"reset": raising})(["agent_pos"]), n_obs_steps=2)
    with pytest.raises(ValueError, match=r"fails in reset\(seed\) in the episode of seed 7"):
        episode.reset(seed=7, max_steps=20, record=False)


def test_a_kick_moves_the_block_and_is_the_same_every_time() -> None:
    ends = []
    for kick in (0.0, 25.0, 25.0):
        episode = Episode(PushTEnv(["block_pose"]), 1, kick=kick)
        start = episode.reset(100_003, 80, False).obs["block_pose"][-1]
        waiting = np.tile(episode.env.state[:2], (60, 1)).astype(np.float32)
        ends.append(episode.step(waiting).obs["block_pose"][-1])
        moved = np.hypot(*(ends[-1] - start)[:2])
        assert moved == pytest.approx(kick, abs=1e-3)
    assert np.array_equal(ends[1], ends[2])


def test_an_environment_that_cannot_be_kicked_is_named() -> None:
    class Firm(PushTEnv):
        disturb = property()  # unreadable, as if it were not there

    with pytest.raises(ValueError, match=r"no method disturb\(rng, strength\)"):
        Episode(Firm(["agent_pos"]), 1, kick=1.0)

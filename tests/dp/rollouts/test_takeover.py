"""An expert takes over where a policy stalls, and nowhere else."""

import numpy as np
import pytest
import torch

from dp.rollouts.runner import EnvRunner, EpisodeResult
from dp.rollouts.takeover import SOLVED, Takeover
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.expert.finisher import finish
from dp.tasks.recorder import RecordedEpisode
from tests.dp.rollouts.test_runner import policy  # noqa: F401

CPU = torch.device("cpu")


class Ended(EnvRunner):
    """Episodes that have ended, in another order than that of their seeds."""

    def __init__(self, episodes):
        self.episodes = episodes

    def stream(self, _policy, _device, seeds, *_):
        started = set(seeds)
        yield from (e for e in self.episodes if e.seed in started)


def episode(seed: int, rewards: list[float], success: bool | None) -> EpisodeResult:
    actions = [np.full(2, step, np.float32) for step in range(len(rewards))]
    return EpisodeResult(seed, max(rewards), success, len(rewards), actions=actions, rewards=rewards)


def tell(seed: int, actions: np.ndarray) -> RecordedEpisode:
    """A demonstration that says where it began."""
    return RecordedEpisode(seed, {}, actions, actions, True)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_it_begins_after_the_best_reward_in_the_order_of_seeds(policy, n_workers):  # noqa: F811
    episodes = [
        episode(7, [0.1] * 10 + [0.9] + [0.2] * 20, False),
        episode(5, [0.1, 0.5, 1.0], True),
        episode(6, [0.3] * 40, None),
    ]
    made = list(Takeover(tell, n_workers)(Ended(episodes), policy, CPU, [5, 6, 7]))
    assert [seed for seed, _ in made] == [5, 6, 7]
    assert made[0][1] == SOLVED
    for (seed, one), best, length in zip(made[1:], (0, 10), (40, 31), strict=True):
        assert one.seed == seed
        assert best < len(one) <= length
        assert np.array_equal(one.action[:, 0], np.arange(len(one)))
    begins = {len(dict(Takeover(tell, 0)(Ended([episode(seed, [0.3] * 40, False)]), policy, CPU, [seed]))[seed])
              for seed in range(20)}  # fmt: skip
    assert len(begins) > 8


def test_a_task_without_an_expert_is_told_what_to_use():
    with pytest.raises(ValueError, match=r"no expert that could take over \(Task.expert\). Collect with"):
        Takeover(None, 0)


def test_the_planner_solves_from_where_the_actions_lead():
    env = PushTEnv([])
    env.reset(2003)
    actions = np.tile(env.state[2:4], (30, 1)).astype(np.float32)  # straight at the block
    for action in actions:
        env.step(action)
    solution = finish(2003, actions)
    assert solution is not None
    assert solution.success
    np.testing.assert_allclose(solution.state[0], env.state, atol=1e-3)


def test_where_the_policy_has_spoilt_the_scene_the_expert_begins_at_the_best_reward(policy):  # noqa: F811
    def tell_early(seed: int, actions: np.ndarray) -> RecordedEpisode | None:
        return tell(seed, actions) if len(actions) <= 11 else None

    ended = Ended([episode(7, [0.1] * 10 + [0.9] + [0.2] * 200, False)])
    [(_, one)] = Takeover(tell_early, 0)(ended, policy, CPU, [7])
    assert len(one) == 11

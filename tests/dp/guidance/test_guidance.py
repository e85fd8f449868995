"""Guidance chooses among a policy's samples, and changes nothing where it has no preference."""

import numpy as np
import pytest
import torch

from dp.guidance import BestOfN, Coherence, Ensemble, Inpainting, Unguided, WarmStart
from dp.rollouts.runner import EnvRunner
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.expert.critic import SOLVED, SimulatorCritic
from dp.tasks.pusht.expert.planner import Planner
from dp.types import Guidance, Situation
from tests.dp.rollouts.test_runner import SHAPES, TellingEnv, policy  # noqa: F401

CPU = torch.device("cpu")


class Indifferent:
    """Likes all plans alike."""

    def __init__(self, n_action_steps: int) -> None:
        pass

    def costs(self, plans: np.ndarray, situation: Situation) -> np.ndarray:
        return np.zeros(len(plans))


class Leftmost(Indifferent):
    """Likes plans that are on the left when the next decision is due."""

    def costs(self, plans: np.ndarray, situation: Situation) -> np.ndarray:
        return plans[:, 7, 0]


def executed(policy, guidance: Guidance | None, n_envs: int = 3, n_workers: int = 0) -> list[np.ndarray]:  # noqa: F811
    """The actions of three episodes of two chunks and a half."""
    env = PushTEnv if guidance and guidance.sees_state else TellingEnv
    runner = EnvRunner(
        lambda: env(list(SHAPES)), 2, 3, 100_000, 0, 20, n_envs, n_workers, 0, guidance=guidance
    )  # fmt: skip
    result = runner.run(policy, CPU)
    runner.close()
    return [np.stack(episode.actions) for episode in result.episodes]


@pytest.mark.parametrize(
    "guidance",
    [
        BestOfN(1, "coherence"),
        Inpainting(0),
        WarmStart(0.0),
        BestOfN(5, "simulator", simulator=Indifferent),
        Ensemble(0.0),
    ],
)
def test_without_a_choice_it_equals_no_guidance_to_the_bit(policy, guidance):  # noqa: F811
    if isinstance(guidance, Ensemble):
        policy.n_action_steps = 15  # nothing is foreseen twice
    try:
        plain, guided = executed(policy, Unguided()), executed(policy, guidance)
    finally:
        policy.n_action_steps = 8
    for one, other in zip(plain, guided, strict=True):
        assert np.array_equal(one, other)


def test_more_samples_are_other_samples_and_the_critic_gets_what_it_likes(policy):  # noqa: F811
    ends = [
        np.mean([actions[7, 0] for actions in executed(policy, BestOfN(n, "simulator", simulator=Leftmost))])
        for n in (1, 4, 16)
    ]
    assert ends[0] > ends[1] > ends[2]


def test_guided_rollouts_do_not_depend_on_how_many_run_at_once(policy):  # noqa: F811
    at_once, one_by_one = (executed(policy, BestOfN(4, "coherence"), n_envs=n) for n in (3, 1))
    for one, other in zip(at_once, one_by_one, strict=True):
        assert np.array_equal(one, other)


def test_coherence_is_the_distance_from_the_rest_of_the_last_plan():
    last, situation = np.arange(6.0)[:, None].repeat(2, 1), Situation(torch.Generator())
    critic = Coherence(n_action_steps=4, decay=0.5)
    plans = np.stack([last[[4, 5, 5, 5, 5, 5]], np.zeros((6, 2))])
    assert critic.costs(plans, situation).tolist() == [0, 0]  # nothing to continue
    situation.plan = torch.from_numpy(last)
    assert critic.costs(plans, situation) == pytest.approx([0, 2**0.5 * (4 + 0.5 * 5)])


def test_an_ensemble_is_the_mean_of_what_was_foreseen():
    class Counting:
        n_action_steps, n = 2, 0.0

        def encode(self, obs):
            return obs

        def plan(self, cond, generator=None, n=1):
            self.n += 1
            return torch.full((1, 1, 5, 1), self.n)

    policy, situation = Counting(), Situation(torch.Generator())  # noqa: F811
    chunks = [Ensemble(decay=1.0).act(policy, {}, [situation])[0, :2].flatten().tolist() for _ in range(3)]
    weight = np.exp(-1)
    assert chunks[0] == [1, 1]
    assert chunks[1] == pytest.approx([(1 + 2 * weight) / (1 + weight)] * 2)
    # The first plan reaches one step into the third chunk, the second one both.
    assert chunks[2][0] == pytest.approx((1 + 2 * weight + 3 * weight**2) / (1 + weight + weight**2))
    assert chunks[2][1] == pytest.approx((2 + 3 * weight) / (1 + weight))


def test_the_true_state_is_seen_only_by_guidance_that_says_so(policy):  # noqa: F811
    seen = []

    class Looking(Indifferent):
        def costs(self, plans, situation):
            seen.append(situation.state)
            return np.zeros(len(plans))

    guidance = BestOfN(2, "simulator", simulator=Looking)
    executed(policy, guidance)
    assert all(state["state"].shape == (5,) for state in seen)
    seen.clear()
    guidance.sees_state = False
    executed(policy, guidance)
    assert set(seen) == {None}


def test_the_simulator_values_what_solves_the_task_above_all():
    env = PushTEnv([])
    env.reset(1003)
    solution = Planner()(1003)
    assert solution is not None
    for action in solution.frames()["action"][:-10]:
        env.step(action)
    situation = Situation(torch.Generator(), env.snapshot())
    rest = solution.frames()["action"][-10:]
    plans = np.stack([np.tile(env.state[:2], (10, 1)), rest, rest[::-1]]).astype(np.float32)
    still, solving, _ = SimulatorCritic(8).costs(plans, situation)
    assert solving == SOLVED < still


def test_a_task_without_physics_is_told_what_to_use():
    with pytest.raises(ValueError, match=r"critic=simulator: the task has no physics .* critic=value"):
        BestOfN(4, "simulator")

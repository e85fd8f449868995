"""Rollouts do not depend on how many run at once or where, and report what happened."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from dp.denoisers import UNet1d
from dp.encoders import StateEncoder
from dp.modalities import Normalizer
from dp.objectives import Diffusion
from dp.policy import DiffusionPolicy
from dp.rollouts.baselines import DoNothing
from dp.rollouts.runner import EnvRunner, EpisodeResult, RolloutResult
from dp.tasks.pusht import PushT
from dp.tasks.pusht.env import PushTEnv
from tests.specs import specs

CPU = torch.device("cpu")
SHAPES = {"agent_pos": (2,), "block_pose": (4,)}
MAX_STEPS = {100000 + i: 20 + i % 5 for i in range(10)}


stay = partial(PushT("pusht", {"obs": dict.fromkeys(SHAPES)}).idle, action_dim=2)


class TellingEnv(PushTEnv):
    """Its reward is where the agent is: unlike the block's coverage it shows every difference of an action."""

    def step(self, action: np.ndarray) -> None:
        super().step(action)
        self._coverage = 0.9 * float(self.state[:2].sum()) / 1024


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    """Random weights; its actions reach all over the table."""
    torch.manual_seed(0)
    normalizer = Normalizer.fit(
        specs({**SHAPES, "action": (2,)}),
        {
            "agent_pos": torch.tensor([[0.0, 0.0], [512.0, 512.0]]),
            "block_pose": torch.tensor([[0.0, 0.0, -1.0, -1.0], [512.0, 512.0, 1.0, 1.0]]),
            "action": torch.tensor([[100.0, 100.0], [400.0, 400.0]]),
        },
    )
    denoiser = UNet1d(2, 12, channels=(16, 32, 64), kernel_size=3, step_embed_dim=32, norm="layer")
    policy = DiffusionPolicy(
        StateEncoder(specs(**SHAPES)),
        denoiser,
        Diffusion(DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2"), 4),
        normalizer,
        horizon=16,
        n_obs_steps=2,
        n_action_steps=8,
        action_dim=2,
    )
    return policy.eval()


def make_runner(**changes: object) -> EnvRunner:
    settings = {
        "make_env": partial(TellingEnv, list(SHAPES)),
        "n_obs_steps": 2,
        "n_episodes": 10,
        "start_seed": 100000,
        "n_train_episodes": 0,
        "max_steps": MAX_STEPS,
        "n_envs": 10,
        "n_workers": 0,
        "n_videos": 0,
    }
    return EnvRunner(**{**settings, **changes})


@pytest.fixture(scope="module")
def one_at_a_time(policy: DiffusionPolicy) -> RolloutResult:
    return make_runner(n_envs=1, n_videos=2).run(policy, CPU)


@pytest.mark.parametrize(("n_envs", "n_workers"), [(3, 0), (8, 0), (10, 0), (3, 2), (8, 2)])
def test_results_depend_neither_on_environments_at_once_nor_on_workers(
    policy: DiffusionPolicy, one_at_a_time: RolloutResult, n_envs: int, n_workers: int
) -> None:
    result = make_runner(n_envs=n_envs, n_workers=n_workers, n_videos=2).run(policy, CPU)
    for episode, alone in zip(result.episodes, one_at_a_time.episodes, strict=True):
        assert episode.row() == alone.row()
        assert episode.rewards == alone.rewards
        np.testing.assert_array_equal(episode.frames, alone.frames)


def test_a_second_run_repeats_the_first(policy: DiffusionPolicy) -> None:
    runner = make_runner(n_episodes=2)
    rows = [[e.row() for e in runner.run(policy, CPU).episodes] for _ in range(2)]
    assert rows[0] == rows[1]


def test_episodes_differ(one_at_a_time: RolloutResult) -> None:
    rewards = [reward for episode in one_at_a_time.episodes for reward in episode.rewards]
    assert len(set(rewards)) == len(rewards)


def test_rows_say_what_happened(one_at_a_time: RolloutResult) -> None:
    episodes = one_at_a_time.episodes
    assert [e.seed for e in episodes] == list(MAX_STEPS)
    assert [e.length for e in episodes] == list(MAX_STEPS.values())  # each stops when it has ended
    for episode in episodes:
        assert list(episode.row()) == ["seed", "max_reward", "success", "length", "final_coverage"]
        assert len(episode.rewards) == episode.length
        assert episode.max_reward == max(episode.rewards)
        assert episode.info["coverage"] == pytest.approx(0.95 * episode.rewards[-1])
        assert episode.success is False


def test_only_the_first_videos_are_recorded(one_at_a_time: RolloutResult) -> None:
    recorded = [len(e.frames) for e in one_at_a_time.episodes]
    assert recorded == [1 + e.length for e in one_at_a_time.episodes[:2]] + [0] * 8  # the first shows the start
    assert np.stack(one_at_a_time.episodes[0].frames).shape == (21, 384, 384, 3)


def test_score_and_success_are_the_means_of_the_rows() -> None:
    episodes = [EpisodeResult(i, max_reward=r, success=r == 1) for i, r in enumerate([0.2, 1.0, 0.6, 0.2])]
    result = RolloutResult(episodes, {"reward": (0.0, 1.0)})
    assert result.score.value == pytest.approx(0.5)
    assert 0 <= result.score.low < 0.5 < result.score.high <= 1
    assert result.success.value == 0.25
    assert 0 < result.success.low < 0.25 < result.success.high < 1


def test_training_episodes_are_the_first_demonstrations(policy: DiffusionPolicy) -> None:
    runner = make_runner(n_train_episodes=3, max_steps=4, n_videos=2)
    result = runner.run_train(policy, CPU, [4, 7, 30, 31])
    assert [e.seed for e in result.episodes] == [4, 7, 30]
    assert not any(e.frames for e in result.episodes)
    assert make_runner(n_train_episodes=0).run_train(policy, CPU, [4, 7]) is None


def test_every_environment_runs_until_its_own_end_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = []
    step: Callable = PushTEnv.step
    monkeypatch.setattr(PushTEnv, "step", lambda env, action: (stepped.append(1), step(env, action))[1])
    make_runner(n_envs=4).run(DoNothing(stay, 8), CPU)
    assert len(stepped) == sum(MAX_STEPS.values())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_episodes", 0),
        ("start_seed", -1),
        ("n_train_episodes", -1),
        ("max_steps", 0),
        ("max_steps", {100000: 5, 100001: 0}),
        ("n_envs", 0),
        ("n_workers", -1),
        ("n_videos", -1),
    ],
)
def test_counts_that_make_no_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name}="):
        make_runner(**{name: value})


class Lost(DoNothing):
    def act(self, obs: dict, generator: object = None) -> torch.Tensor:
        return super().act(obs, generator) * torch.nan


def test_actions_that_are_not_finite_are_no_score() -> None:
    runner = EnvRunner(partial(PushTEnv, ["agent_pos"]), 2, 2, 100_000, 0, 20, 2, 0, 0)
    with pytest.raises(ValueError, match="Lost sampled actions that are not finite"):
        runner.run(Lost(stay, 8), CPU)

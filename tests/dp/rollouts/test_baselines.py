"""Baselines: the environment, the seeds and the metrics are what they should be."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dp.rollouts.baselines import DoNothing, Replay
from dp.rollouts.runner import EnvRunner, RolloutResult
from dp.tasks.pusht import PushT
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.store import ReplayBuffer

CPU = torch.device("cpu")
stay = partial(PushT("pusht", {"obs": {}}).idle, action_dim=2)
EPISODES = [*range(10), 51]  # 51 is one of the seven demonstrations that succeed


@pytest.fixture(scope="module")
def buffer(official_zarr: Path) -> ReplayBuffer:
    return ReplayBuffer.load(official_zarr, ["state", "action"])


def spans(buffer: ReplayBuffer) -> dict[int, slice]:
    return {i: slice(buffer.episode_starts[i], buffer.episode_ends[i]) for i in EPISODES}


def replay(buffer: ReplayBuffer, n_action_steps: int, max_steps: int | dict[int, int], n_envs: int) -> RolloutResult:
    actions = torch.from_numpy(buffer.arrays["action"])
    runner = EnvRunner(
        partial(PushTEnv, ["agent_pos"]), 2, 1, 0, len(EPISODES), max_steps, n_envs, n_workers=0, n_videos=0
    )
    policy = Replay({i: actions[span] for i, span in spans(buffer).items()}, n_action_steps)
    return runner.run_train(policy, CPU, EPISODES)


def test_doing_nothing_scores_the_initial_coverage() -> None:
    runner = EnvRunner(partial(PushTEnv, ["agent_pos"]), 2, 50, 100000, 0, 8, n_envs=16, n_workers=0, n_videos=0)
    result = runner.run(DoNothing(stay, 8), CPU)
    env, initial = PushTEnv([]), []
    for seed in range(100000, 100050):
        env.reset(seed)
        initial.append(env._env._get_coverage() / 0.95)
    best = np.array([e.max_reward for e in result.episodes])
    # Where the agent starts on the block it pushes it away; elsewhere nothing moves.
    assert np.mean(np.abs(best - initial) < 1e-3) > 0.75
    assert np.mean(initial) <= result.score.value < np.mean(initial) + 0.01
    assert result.success.value == 0


def test_doing_nothing_stays_at_the_latest_position() -> None:
    obs = {"agent_pos": torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])}
    action = DoNothing(stay, 3).act(obs)
    assert torch.equal(action, torch.tensor([[[3.0, 4.0]] * 3, [[7.0, 8.0]] * 3]))


@pytest.mark.parametrize(("n_action_steps", "n_envs"), [(8, 11), (5, 3)])
def test_replayed_demonstrations_reach_what_their_states_show(
    buffer: ReplayBuffer, n_action_steps: int, n_envs: int
) -> None:
    lengths = {i: int(span.stop - span.start) for i, span in spans(buffer).items()}
    result = replay(buffer, n_action_steps, lengths, n_envs)
    env = PushTEnv([])
    for episode in result.episodes:
        shown = []
        for state in buffer.arrays["state"][spans(buffer)[episode.seed]][1:]:  # each is an action's result
            env.reset_to_observed(state.astype(np.float64))
            shown.append(min(1, env._env._get_coverage() / 0.95))
        assert episode.rewards[:-1] == pytest.approx(shown, abs=1e-5)
        assert episode.max_reward == max(episode.rewards)
        assert 0.906 <= episode.max_reward <= 1
        assert episode.length == lengths[episode.seed]
    assert [e.seed for e in result.episodes if e.success] == [51]


def test_a_solved_episode_stops_and_the_last_action_of_others_is_repeated(buffer: ReplayBuffer) -> None:
    lengths = {e.seed: e.length for e in replay(buffer, 8, 200, n_envs=4).episodes}
    recorded = {i: span.stop - span.start for i, span in spans(buffer).items()}
    assert lengths[51] == 73
    assert all(recorded[i] <= lengths[i] <= 200 for i in range(10))  # some succeed as the block comes to rest
    assert 200 in lengths.values()


def test_replay_goes_on_where_it_stopped_for_each_seed() -> None:
    actions = torch.arange(10).float()[:, None].repeat(1, 2)
    policy = Replay({3: actions, 4: actions + 100}, n_action_steps=4)
    three, four, unknown = (torch.Generator().manual_seed(seed) for seed in (3, 4, 5))
    assert policy.act({}, [three])[0, :, 0].tolist() == [0, 1, 2, 3]
    assert policy.act({}, [four, three])[..., 0].tolist() == [[100, 101, 102, 103], [4, 5, 6, 7]]
    assert policy.act({}, [three, unknown])[..., 0].tolist() == [[8, 9, 9, 9], [0, 0, 0, 0]]


def test_baselines_do_not_learn() -> None:
    batch = {"obs": {}, "action": torch.zeros(1, 16, 2)}
    for policy in (DoNothing(stay, 8), Replay({}, 8)):
        with pytest.raises(NotImplementedError):
            policy.loss(batch)

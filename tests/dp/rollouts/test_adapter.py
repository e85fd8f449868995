"""Anybody's policy as the runner sees it."""

import numpy as np
import pytest
import torch

from dp.rollouts.adapter import PolicyAdapter

OBS = {"pose": torch.arange(6.0).reshape(3, 2, 1), "camera": torch.zeros(3, 2, 4, 4, 3, dtype=torch.uint8)}


class Batched:
    def act(self, obs):
        assert obs["camera"].dtype == np.uint8
        return obs["pose"][:, -1:].repeat(5, axis=1).repeat(2, axis=2)


class Random:
    """Remembers the seeds, and draws."""

    def __init__(self):
        self.seeds, self.rows = [], []

    def reset(self, seed):
        self.seeds.append(seed)
        self.rng = np.random.default_rng(seed)

    def act(self, obs):
        self.rows.append(obs["pose"].shape)
        return torch.from_numpy(self.rng.normal(size=(1, 4, 2)))


def test_a_policy_without_memory_gets_the_whole_batch():
    chunk = PolicyAdapter(Batched(), 2).act(OBS)
    assert chunk.shape == (3, 5, 2)
    assert chunk[:, 0, 0].tolist() == [1, 3, 5]


def test_one_with_reset_gets_an_episode_at_a_time_and_its_seed_once():
    policy = Random()
    adapter = PolicyAdapter(policy, 2)
    spare = [torch.Generator(), torch.Generator()]
    chunks = []
    for seed in (7, 8, 7):  # the same seed again is another episode
        episode = torch.Generator().manual_seed(seed)
        chunks.append([adapter.act(OBS, [episode, *spare])[0] for _ in range(2)])
    assert policy.seeds == [7, 8, 7]
    assert set(policy.rows) == {(1, 2, 1)}
    assert torch.equal(torch.stack(chunks[0]), torch.stack(chunks[2]))
    assert not torch.equal(chunks[0][0], chunks[0][1])


def test_what_fails_in_it_is_named():
    class Broken(Batched):
        def act(self, obs):
            raise KeyError("joints")

    with pytest.raises(ValueError, match=r"the policy fails in act\(obs\): KeyError: 'joints'"):
        PolicyAdapter(Broken(), 2).act(OBS)
    with pytest.raises(ValueError, match=r"shape \(3, 5, 2\), expected \(3, T, 7\)"):
        PolicyAdapter(Batched(), 7).act(OBS)
    with pytest.raises(ValueError, match=r"policy=object has no method act\(obs\)"):
        PolicyAdapter(object(), 2)

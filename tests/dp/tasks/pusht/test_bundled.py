"""The demonstrations that come with the package."""

import os

import numpy as np
import pytest
from gym_pusht.envs.pusht import PushTEnv

from dp.tasks.pusht.sources import BUNDLED_PATH
from dp.tasks.pusht.store import ReplayBuffer, read_facts

EVERY = int(os.environ.get("DP_EVERY", "25"))
"""Of how many episodes one is replayed; `DP_EVERY=1` replays all of them."""


@pytest.fixture(scope="module")
def bundled():
    return ReplayBuffer.load(BUNDLED_PATH, ["state", "action", "noise"])


def test_it_is_small_and_from_seeds_that_no_protocol_uses(bundled):
    assert sum(file.stat().st_size for file in BUNDLED_PATH.rglob("*") if file.is_file()) <= 1.5e6
    assert bundled.seeds.min() > 205
    assert bundled.seeds.max() < 100_000
    assert len(set(bundled.seeds.tolist())) == bundled.n_episodes
    facts = read_facts(BUNDLED_PATH)
    assert set(facts["source"].tolist()) == {"planner"}
    assert facts["success"].all()
    assert bundled.from_seed.all()


def test_episodes_replay_in_the_stock_environment(bundled):
    coverage = read_facts(BUNDLED_PATH)["final_coverage"]
    env = PushTEnv(obs_type="state")
    for number in range(0, bundled.n_episodes, EVERY):
        episode = bundled.episode(number)
        obs, _ = env.reset(options={"reset_to_state": bundled.initial_states[number]})
        solved = False
        for state, action in zip(episode["state"], episode["action"] + episode["noise"], strict=True):
            assert np.array_equal(obs.astype(np.float32), state)
            obs, _, terminated, _, info = env.step(action)
            solved |= bool(terminated)
        assert solved
        assert info["coverage"] == pytest.approx(coverage[number], abs=1e-11)

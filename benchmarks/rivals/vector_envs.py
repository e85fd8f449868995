"""Stock gym-pusht in gymnasium's vector environments: images at every step, whether somebody looks or not."""

import json
import sys
from collections.abc import Callable

import gym_pusht  # noqa: F401  registers the environment
import gymnasium
import numpy as np

from benchmarks.turns import serve

TOWARDS = np.array([[100.0, 100.0], [400.0, 120.0], [380.0, 400.0], [120.0, 380.0]])


def rollout(vector: str, n_episodes: int, max_steps: int) -> Callable[[], object]:
    kind = {"sync": gymnasium.vector.SyncVectorEnv, "async": gymnasium.vector.AsyncVectorEnv}[vector]
    envs = kind([_make] * n_episodes)

    def work() -> None:
        envs.reset(seed=0)
        for step in range(max_steps):
            envs.step(np.tile(TOWARDS[step % 4], (n_episodes, 1)).astype(np.float32))

    return work


def _make() -> gymnasium.Env:
    return gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", max_episode_steps=10_000)


if __name__ == "__main__":
    serve(rollout(**json.loads(sys.argv[1])))

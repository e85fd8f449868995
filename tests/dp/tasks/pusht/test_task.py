"""What PushT says of itself."""

import numpy as np

from dp.tasks import Task
from dp.tasks.pusht import PushT, PushTEnv

SHAPE_META = {"obs": {"agent_pos": {"shape": [2]}}, "action": {"shape": [2]}}


def test_the_scene_of_a_seed_is_what_its_episode_starts_with():
    task, env = PushT("pusht_state", SHAPE_META), PushTEnv([])
    for seed in (7, 100_003):
        scene = task.scene(seed)
        env.reset(seed)
        block, goal = env.outlines()
        assert np.array_equal(scene.starts[0], block)
        assert np.array_equal(scene.goal[0], goal)
        left, right, bottom, top = scene.bounds
        assert left < block[:, 0].mean() < right
        assert top < block[:, 1].mean() < bottom


def test_a_task_draws_no_map_unless_it_says_how():
    assert Task("mine", SHAPE_META).scene(0) is None

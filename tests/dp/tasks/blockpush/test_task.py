"""The facts of Block Push hold without pybullet, which is asked for when something is simulated."""

import sys

import numpy as np
import pytest

from dp.tasks.blockpush import BlockPush, BlockPushEnv
from dp.tasks.blockpush.layout import BLOCKS_APART, TOLERANCE, layout, within_reach
from dp.tasks.blockpush.oracle import BEHIND, Oracle


@pytest.fixture
def task() -> BlockPush:
    return BlockPush("blockpush_state", {"obs": {}, "action": {"shape": [2]}})


def test_without_pybullet_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pybullet", None)
    for make in (lambda: BlockPushEnv([]), Oracle):
        with pytest.raises(ValueError, match=r"needs pybullet: pip install -e '\.\[blockpush\]'"):
            make()


def test_layouts_have_room_and_leave_something_to_do() -> None:
    for seed in range(200):
        start = layout(seed)
        assert abs(start.blocks[0, 0] - start.blocks[1, 0]) > BLOCKS_APART
        between = start.blocks[:, None, :2] - start.targets[None, :, :2]
        assert np.hypot(between[..., 0], between[..., 1]).min() > 2 * TOLERANCE
        # The arm reaches behind every block, wherever it is pushed from.
        for block in start.blocks[:, :2]:
            for target in start.targets[:, :2]:
                behind = block - BEHIND * (target - block) / np.hypot(*(target - block))
                np.testing.assert_allclose(within_reach(behind), behind)
    first = np.array([layout(seed).targets[0, 0] for seed in range(200)])
    assert 60 < (first < 0.4).sum() < 140, "the targets change places"


def test_the_map_of_all_episodes_has_one_goal(task: BlockPush) -> None:
    one, other = task.scene(1), task.scene(2)
    assert all(map(np.array_equal, one.goal, other.goal))
    assert not np.array_equal(one.starts[0], other.starts[0])
    left, right, bottom, top = one.bounds
    for outline in (*one.starts, *one.goal):
        assert (outline >= [left, bottom]).all()
        assert (outline <= [right, top]).all()


def test_published_scores_are_in_units_of_the_reward(task: BlockPush) -> None:
    assert [reference.score for reference in task.references] == [0.96, 0.83]
    assert task.protocol(None).max_steps == 350

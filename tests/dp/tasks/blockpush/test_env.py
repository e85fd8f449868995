"""An episode follows from its seed to the bit, whatever else its process does, and is judged as the papers say."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

pytest.importorskip("pybullet", reason="Block Push needs pybullet: pip install -e '.[blockpush]'")

from dp.tasks.blockpush.arm import joints
from dp.tasks.blockpush.env import BlockPushEnv
from dp.tasks.blockpush.layout import EFFECTOR_START, FARTHEST, LOWER, NEAREST, UPPER
from dp.tasks.blockpush.oracle import OBS_NAMES
from dp.tasks.blockpush.world import ARM_JOINTS
from dp.tasks.env import Env


@pytest.fixture(scope="module")
def env() -> BlockPushEnv:
    return BlockPushEnv(OBS_NAMES)


def push(env: BlockPushEnv, seed: int, n_steps: int = 25) -> np.ndarray:
    """Observations (n, 16) of an episode in which the effector runs into a block and through it."""
    env.reset(seed)
    rows = []
    for _ in range(n_steps):
        ahead = env.blocks[0, :2] - env.effector_target
        env.step((0.02 * ahead / np.hypot(*ahead)).astype(np.float32))
        rows.append(np.concatenate(list(env.observe().values())))
    return np.array(rows)


def push_in_a_new_environment(seed: int) -> np.ndarray:
    return push(BlockPushEnv(OBS_NAMES), seed)


def test_it_observes_what_the_reference_environment_does(env: BlockPushEnv) -> None:
    env.reset(7)
    assert isinstance(env, Env)
    obs = env.observe()
    assert list(obs) == list(OBS_NAMES)
    assert sum(value.size for value in obs.values()) == 16
    assert {value.dtype for value in obs.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(obs["effector_translation"], EFFECTOR_START, atol=0.005)
    np.testing.assert_allclose(obs["block2_translation"], env.blocks[1, :2], atol=1e-6)


def test_an_episode_depends_on_nothing_but_its_seed(env: BlockPushEnv) -> None:
    first, second = push(env, 1), push(env, 2)
    assert np.abs(first[-1] - first[0]).max() > 0.05, "a block has moved"
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(push(env, 1), first)
    np.testing.assert_array_equal(push_in_a_new_environment(2), second)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        np.testing.assert_array_equal(pool.submit(push_in_a_new_environment, 2).result(), second)


def test_environments_side_by_side_and_pictures_change_nothing(env: BlockPushEnv) -> None:
    alone, other = push(env, 3, 12), BlockPushEnv(OBS_NAMES)
    other.reset(4)
    env.reset(3)
    for number, row in enumerate(alone):
        other.step(np.array([0.01, 0.02], np.float32))
        ahead = env.blocks[0, :2] - env.effector_target
        env.step((0.02 * ahead / np.hypot(*ahead)).astype(np.float32))
        if number % 4 == 0:
            env.render()
        np.testing.assert_array_equal(np.concatenate(list(env.observe().values())), row)


def test_the_picture_shows_blocks_and_targets(env: BlockPushEnv) -> None:
    env.reset(5)
    picture = env.render()
    assert (picture.dtype, picture.shape) == (np.uint8, (256, 384, 3))
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    for one, others in ((red, (green, blue)), (green, (red, blue)), (blue, (red, green))):
        assert (one > 30 + np.maximum(*others)).sum() > 50


def test_the_arm_holds_the_effector_upright_where_it_belongs(env: BlockPushEnv) -> None:
    env.reset(0)
    engine, arm = env._world._engine, env._world._arm
    for x, y in ((0.3, -0.4), (0.2, 0.0), (0.65, 0.25), (0.5, 0.45)):
        for joint, angle in zip(ARM_JOINTS, joints(np.array([x, y]), 0.15), strict=True):
            engine.resetJointState(arm, joint, angle)
        state = engine.getLinkState(arm, ARM_JOINTS[-1], computeForwardKinematics=True)
        np.testing.assert_allclose(state[4], [x, y, 0.15], atol=1e-4)
        down = engine.getMatrixFromQuaternion(state[5])[8]
        assert down == pytest.approx(-1, abs=1e-6)


def test_the_effector_follows_its_target_and_stays_within_reach(env: BlockPushEnv) -> None:
    env.reset(0)
    for _ in range(30):
        env.step(np.array([-9.0, 9.0], np.float32))
    np.testing.assert_array_equal(env.effector_target, [LOWER[0], UPPER[1]])
    np.testing.assert_allclose(env._world.effector, env.effector_target, atol=0.005)
    for _ in range(10):
        env.step(np.array([9.0, 0.0], np.float32))
    assert np.hypot(*env.effector_target) == pytest.approx(FARTHEST)
    for _ in range(20):
        env.step(np.array([-9.0, -0.05], np.float32))
    assert np.hypot(*env.effector_target) >= NEAREST - 1e-9


@pytest.mark.parametrize(
    ("entered", "reward", "p1", "success"),
    [
        ([[0, 0], [0, 0]], 0.0, 0.0, False),
        ([[0, 1], [0, 0]], 0.49, 1.0, False),
        ([[1, 0], [1, 0]], 0.49, 1.0, False),  # both in the same target
        ([[1, 1], [0, 0]], 0.49, 1.0, False),  # one after the other, by the same block
        ([[1, 0], [0, 1]], 1.0, 1.0, True),
        ([[0, 1], [1, 0]], 1.0, 1.0, True),
    ],
)
def test_each_block_needs_a_target_of_its_own(
    env: BlockPushEnv, entered: list, reward: float, p1: float, success: bool
) -> None:
    env.reset(0)
    env.entered = np.array(entered, bool)
    assert env.reward == pytest.approx(reward)
    assert (env.info(), env.success, env.terminated) == ({"p1": p1}, success, success)


def test_what_has_entered_a_target_counts_for_good(env: BlockPushEnv) -> None:
    env.reset(0)
    start = env.targets
    env.targets = env.blocks[::-1]  # the targets come to the blocks
    env.step(np.zeros(2, np.float32))
    assert env.entered.tolist() == [[False, True], [True, False]]
    env.targets = start
    env.step(np.zeros(2, np.float32))
    assert env.success
    env.reset(0)
    assert env.reward == 0


def test_a_disturbance_moves_one_block_as_far_as_it_says(env: BlockPushEnv) -> None:
    env.reset(0)
    before = env.blocks
    env.disturb(np.random.default_rng(1), 0.04)
    moved = np.hypot(*(env.blocks - before)[:, :2].T)
    np.testing.assert_allclose(sorted(moved), [0, 0.04], atol=1e-6)
    env.step(np.zeros(2, np.float32))
    np.testing.assert_allclose(np.hypot(*(env.blocks - before)[:, :2].T), moved, atol=1e-3)

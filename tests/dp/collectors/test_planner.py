"""The expert solves the task in the real environment, the same way each time; its simulator is the environment's."""

import multiprocessing
import sys

import gymnasium
import numpy as np
import pytest

from dp.collectors import Demonstration, replay, simulator
from dp.collectors.planner import Planner
from dp.collectors.simulator import AREA, GOAL, PERIMETER, Simulator, clearance, pose_error
from dp.envs import PushTEnv
from dp.tasks import pusht

SEED = 1002


@pytest.fixture(scope="module")
def solved() -> Demonstration:
    demonstration = Planner(speed=12.0, horizon=40, n_samples=48, noise=1.0)(SEED)
    assert demonstration is not None
    return demonstration


@pytest.fixture
def push() -> tuple[PushTEnv, np.ndarray]:
    """An environment whose agent pushes the block, and targets with which it goes on."""
    env = PushTEnv([])
    env.reset_to_observed(np.array([150.0, 250.0, 256.0, 256.0, 1.0]))
    targets = np.cumsum(np.full((30, 2), [9.0, 1.0]), axis=0) + env.state[:2]
    for target in targets[:15]:
        env.step(target)
    assert env.n_contacts > 0
    return env, targets[15:]


def test_it_solves_the_task_and_records_what_follows(solved: Demonstration) -> None:
    assert solved.success
    assert solved.final_coverage > 0.95
    assert len(solved) <= 300
    np.testing.assert_array_equal(solved.state[0, :2], pusht.initial_state(SEED)[:2].astype(np.float32))
    env = PushTEnv([])
    env.reset(SEED)
    done = []
    for action in solved.action + solved.noise:
        env.step(action)
        done.append(env.done)
    assert all(done[-9:]), "n_frames_past_success are 8"
    assert not done[-10]


def test_replay_and_the_stock_environment_relive_it_to_the_bit(solved: Demonstration) -> None:
    again = replay(solved)
    np.testing.assert_array_equal(again.state, solved.state)
    assert (again.success, again.final_coverage) == (solved.success, solved.final_coverage)
    stock = gymnasium.make("gym_pusht/PushT-v0", obs_type="state").unwrapped
    observed, _ = stock.reset(options={"reset_to_state": pusht.initial_state(SEED)})
    ever = False
    for state, action, noise in zip(solved.state, solved.action, solved.noise, strict=True):
        np.testing.assert_array_equal(observed.astype(np.float32), state)
        observed, _, done, _, _ = stock.step(action + noise)
        ever |= done
    assert ever


def test_it_is_the_same_in_another_process_and_another_for_another_seed() -> None:
    short = Planner(max_steps=12, n_samples=24, noise=2.0)
    mine, other = (short._attempt(seed, np.random.default_rng(seed)) for seed in (SEED, SEED + 1))
    Planner(max_steps=6, n_samples=24)._attempt(SEED, np.random.default_rng(0))  # what came before does not matter
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        theirs = pool.apply(short._attempt, (SEED, np.random.default_rng(SEED)))
    for name in ("state", "action", "noise", "n_contacts"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert not np.array_equal(mine.action, other.action)


def test_a_failed_attempt_is_followed_by_another_and_at_last_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = Planner(max_steps=3, n_attempts=3, n_samples=24)
    attempts = []
    attempt = Planner._attempt

    def counting(self: Planner, seed: int, rng: np.random.Generator) -> Demonstration:
        attempts.append(attempt(self, seed, rng))
        return attempts[-1]

    monkeypatch.setattr(Planner, "_attempt", counting)
    assert planner(SEED) is None
    assert [len(a) for a in attempts] == [3, 3, 3]
    assert not np.array_equal(attempts[0].action, attempts[1].action)


def test_actions_keep_to_the_speed_limit_and_noise_is_not_in_them() -> None:
    quiet, noisy = (
        Planner(speed=7.0, max_steps=12, n_samples=24, noise=noise)._attempt(SEED, np.random.default_rng(0))
        for noise in (0.0, 6.0)
    )
    for demonstration in (quiet, noisy):
        path = np.concatenate([demonstration.state[:1, :2], demonstration.action])
        assert np.hypot(*np.diff(path, axis=0).T).max() <= 7 + 1e-3
    assert not quiet.noise.any()
    assert noisy.noise.std() > 1


def test_closeness_costs_who_does_not_push_and_a_zigzag_costs() -> None:
    lies = np.tile([256.0, 256.0, 0.0], (50, 1))
    near, far = (np.stack([np.linspace(150, 350, 50), np.full(50, y)], -1) for y in (236.0, 200.0))
    targets, last = np.stack([far] * 3), np.tile(far[0], (2, 1))
    moves = lies + np.arange(50)[:, None] * [1.0, 0.0, 0.0]
    ways, poses = np.stack([near, far, near]), np.stack([lies, lies, moves])
    close, carefree = (Planner(margin=margin)._cost(targets, last, ways, poses) for margin in (20.0, 0.0))
    assert close[0] > carefree[0] + 0.5
    assert close[1] == carefree[1]
    assert close[2] == carefree[2]
    targets[1] += 3 * (-1.0) ** np.arange(50)[:, None]
    straight, zigzag, _ = Planner(smoothness=0.1)._cost(targets, last, np.stack([far] * 3), np.stack([lies] * 3))
    assert zigzag > straight + 1


def test_the_last_plan_is_kept_unless_another_is_better_by_hysteresis() -> None:
    env = PushTEnv([])
    env.reset(SEED)
    last = np.tile(env.state[:2], (2, 1))
    still = np.tile(last[:1], (50, 1))
    plans = [
        Planner(hysteresis=hysteresis, n_samples=24)._plan(
            np.random.default_rng(0), Simulator(False), env.state, env.velocity, last, still
        )
        for hysteresis in (0.0, 1000.0)
    ]
    assert not np.array_equal(plans[0], still)
    np.testing.assert_array_equal(plans[1], still)


def test_a_rollout_is_what_the_environment_does(push: tuple[PushTEnv, np.ndarray]) -> None:
    env, targets = push
    rollouts = [Simulator(private).rollout(env.state, env.velocity, targets[None]) for private in (False, True)]
    for public, private in zip(*rollouts, strict=True):
        np.testing.assert_array_equal(public, private)
    positions, poses = rollouts[0]
    start = env.state
    for target, agent, pose in zip(targets, positions[0], poses[0], strict=True):
        env.step(target)
        np.testing.assert_allclose(env.state[:2], agent, atol=1e-9)
        np.testing.assert_allclose(env.state[2:], pose, atol=0.05)
    assert np.abs(env.state - start)[2:4].max() > 20, "the block did not move"


def test_a_block_far_away_needs_no_physics_and_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    state = np.array([60.0, 250.0, 300.0, 256.0, 1.0])
    targets = np.cumsum(np.full((1, 30, 2), [9.0, 1.0]), axis=1) + state[:2]
    _, lazy = Simulator(False).rollout(state, np.zeros(5), targets)
    monkeypatch.setattr(simulator, "clearance", lambda agent, pose: np.full(agent.shape[:-1], -1.0))
    _, whole = Simulator(False).rollout(state, np.zeros(5), targets)
    assert np.ptp(whole[0, :, 0]) > 5
    np.testing.assert_allclose(lazy, whole, atol=1e-6)


@pytest.mark.parametrize("broken", ["missing", "another result"])
def test_without_pymunks_private_interface_it_plans_slower(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "missing":
        monkeypatch.setitem(sys.modules, "pymunk._chipmunk_cffi", None)
    else:
        monkeypatch.setattr(simulator, "_private_step", lambda simulator: lambda velocity: None)
    simulator.private_api_agrees.cache_clear()
    with pytest.warns(UserWarning, match="times as long"):
        quick = Planner(max_steps=6, n_samples=24)
    slow = quick._attempt(SEED, np.random.default_rng(0))
    monkeypatch.undo()
    simulator.private_api_agrees.cache_clear()
    assert simulator.private_api_agrees()
    fast = quick._attempt(SEED, np.random.default_rng(0))
    np.testing.assert_array_equal(fast.state, slow.state)
    np.testing.assert_array_equal(fast.action, slow.action)


def test_pose_error_is_the_uncovered_share_and_clearance_the_distance_to_the_rim() -> None:
    env = PushTEnv([])
    poses = GOAL + np.array([[1.0, 0.0, 0.0], [0.0, 1.5, 0.0], [0.5, -0.5, 0.02], [0.0, 0.0, -0.03]])
    for pose, error in zip(poses, pose_error(poses), strict=True):
        env.reset_to_observed(np.array([40.0, 40.0, *pose]))
        env.step(np.array([40.0, 40.0]))
        assert 1 - error * PERIMETER / 2 / AREA == pytest.approx(env.coverage, abs=0.004)
    pose = np.array([100.0, 100.0, np.pi / 2])  # the stem points to -x, the bar is x 70..100, y 40..160
    agents = np.array([[125.0, 100.0], [100.0, 180.0], [0.0, 100.0], [85.0, 100.0]])
    np.testing.assert_allclose(clearance(agents, pose), [10, 5, -30, -30], atol=1e-9)

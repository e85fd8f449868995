"""The expert solves the task in the real environment, the same way each time; its simulator is the environment's."""

import multiprocessing
import sys
from dataclasses import replace
from itertools import pairwise

import gymnasium
import numpy as np
import pytest

from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.demonstration import Demonstration, replay
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.expert import simulator, value
from dp.tasks.pusht.expert.planner import Planner
from dp.tasks.pusht.expert.pushes import PUSHES, STANDOFF, walks
from dp.tasks.pusht.expert.simulator import AREA, GOAL, PERIMETER, Simulator, clearance, pose_error, rotate
from workspaces.arguments import check_arguments

SEED = 1002


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(noise=1.0, n_frames_past_success=3)


@pytest.fixture(scope="module")
def solved(planner: Planner) -> Demonstration:
    demonstration = planner(SEED)
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
    np.testing.assert_array_equal(solved.initial_state, pusht.initial_state(SEED))
    np.testing.assert_array_equal(solved.state[0, :2], solved.initial_state[:2].astype(np.float32))
    env = PushTEnv([])
    env.reset(SEED)
    done = []
    for action in solved.action + solved.noise:
        env.step(action)
        done.append(env.success)
    assert all(done[-4:]), "n_frames_past_success are 3"


def test_frames_past_success_are_a_halt_behind_everything_else(planner: Planner, solved: Demonstration) -> None:
    bare = replace(planner, n_frames_past_success=0)(SEED)
    assert bare is not None
    np.testing.assert_array_equal(solved.action[:-3], bare.action)
    np.testing.assert_array_equal(solved.action[-3:], bare.action[[-1, -1, -1]])


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


def test_it_pushes_on_from_where_it_touches_the_block_and_walks_round_it_from_elsewhere(planner: Planner) -> None:
    push, pose = PUSHES[0], np.array([256.0, 200.0, 2.0])

    def plan(agent_in_the_blocks_frame: np.ndarray) -> tuple[np.ndarray, float]:
        agent = rotate(agent_in_the_blocks_frame, pose[2]) + pose[:2]
        path = np.stack([agent, *planner._targets(pose, agent, push, length=60.0)])
        return rotate(path - pose[:2], -pose[2]), planner._way_steps(pose, agent, push)

    touching = push.contact + np.array([4.0, -3.0])
    path, steps = plan(touching)
    assert steps == 0
    np.testing.assert_allclose(path[-1], touching + 60 * push.direction, atol=1e-3)
    assert (np.diff(path @ push.direction) > 0).all(), "straight on"
    assert np.hypot(*np.diff(path, axis=0).T).max() <= planner.push_speed + 1e-3

    path, steps = plan(push.start + 40 * rotate(push.approach, np.pi / 2))
    assert steps > STANDOFF / planner.push_speed
    assert (path @ push.direction).min() <= push.start @ push.direction + 1
    np.testing.assert_allclose(path[-1], push.contact + 60 * push.direction, atol=1e-3)


def test_it_is_the_same_in_another_process_and_another_for_another_seed(planner: Planner) -> None:
    short = replace(planner, max_steps=40, noise=2.0)
    mine, other = (short._attempt(seed, 0) for seed in (SEED, SEED + 1))
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # it has done nothing before
        theirs = pool.apply(short._attempt, (SEED, 0))
    for name in ("state", "action", "noise", "n_contacts"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert not np.array_equal(mine.action, other.action)


def test_a_failed_attempt_is_followed_by_another_and_at_last_by_none(
    planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(planner, max_steps=30, n_attempts=3)
    attempts = []
    attempt = Planner._attempt

    def counting(self: Planner, seed: int, number: int, initial_state: None) -> Demonstration:
        attempts.append(attempt(self, seed, number))
        return attempts[-1]

    monkeypatch.setattr(Planner, "_attempt", counting)
    assert short(SEED) is None
    assert [len(a) for a in attempts] == [30, 30, 30]
    assert not np.array_equal(attempts[0].action, attempts[1].action)


def test_values_that_make_no_sense_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"collector\.push_speed=0\.0, expected a number of at least 1"):
        check_arguments("collector", Planner, {"push_speed": 0.0})
    with pytest.raises(ValueError, match=r"collector\.n_samples=4, expected a whole number of at least 8"):
        check_arguments("collector", Planner, {"n_samples": 4})


def test_actions_keep_to_the_speed_limits_and_noise_is_not_in_them(solved: Demonstration) -> None:
    path = np.concatenate([solved.state[:1, :2], solved.action])
    speed = np.hypot(*np.diff(path, axis=0).T)
    assert Planner().walk_speed - 1 < speed.max() <= Planner().walk_speed + 1e-3
    pushing = np.flatnonzero(np.abs(np.diff(solved.state[:, 2:4], axis=0)).max(1) > 1)
    assert np.median(speed[pushing]) == pytest.approx(Planner().push_speed, abs=0.5)
    assert 0.5 < solved.noise.std() < 2


def test_every_push_comes_straight_to_a_face_and_moves_the_block() -> None:
    made = value.outcomes(6.0)
    assert set(made.push.tolist()) == set(range(len(PUSHES)))
    origin = np.zeros(3)
    for number, push in enumerate(PUSHES):
        assert clearance(push.contact, origin) == pytest.approx(0, abs=0.51)
        assert clearance(push.contact - 0.9 * STANDOFF * push.approach, origin) > 5
        longest = made.moved[made.push == number][-1]
        assert np.hypot(*longest[:2]) > 3
        mirrored = [i for i, other in enumerate(PUSHES) if np.allclose(other, np.array(push) * [-1, 1])]
        assert len(mirrored) == 1
        np.testing.assert_allclose(made.moved[made.push == mirrored[0]][-1], longest * [-1, 1, -1], atol=1e-6)


def test_walks_go_round_the_block_and_are_short() -> None:
    walk, start, end = walks(30.0), np.array([0.0, -70.0]), np.array([0.0, 190.0])
    way = walk(start, end)
    np.testing.assert_array_equal(way[[0, -1]], [start, end])
    fine = np.concatenate([a + np.linspace(0, 1, 20)[:, None] * (b - a) for a, b in pairwise(way)])
    assert clearance(fine, np.zeros(3)).min() > 20
    assert np.hypot(*np.diff(way, axis=0).T).sum() < 400
    touching = walk(PUSHES[0].contact, end)
    assert clearance(touching[1:], np.zeros(3)).min() >= 0


def test_what_is_left_to_do_is_least_at_the_goal_and_keeps_bellmans_equation(planner: Planner) -> None:
    left, made = value.cost_to_go(planner.push_speed), value.outcomes(planner.push_speed)
    assert left(GOAL[None]) == pytest.approx(0, abs=1e-3)
    poses = GOAL + np.random.default_rng(0).uniform(-1, 1, (200, 3)) * [100, 100, np.pi]
    best = []
    for pose in poses:
        after = pose + np.concatenate([rotate(made.moved[:, :2], pose[2]), made.moved[:, 2:]], axis=1)
        best.append(min((made.steps + value.WAY + left(after)).min(), value.without_a_push(pose)))
    np.testing.assert_allclose(left(poses), best, rtol=0.4)
    assert np.mean(left(poses)) == pytest.approx(np.mean(best), rel=0.03)
    assert np.diff(left(GOAL + np.array([[60.0, 0.0, 0.0], [60.0, 0.0, np.pi]]))) > 20


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


def test_an_agent_that_comes_back_finds_the_block_where_it_left_it(monkeypatch: pytest.MonkeyPatch) -> None:
    state = np.array([150.0, 250.0, 256.0, 256.0, 1.0])
    away = [np.arange(240.0, 120, -15), np.full(5, 120.0)]
    x = np.concatenate([np.arange(160.0, 240, 8), *away, np.arange(120.0, 330, 10)])
    targets = np.stack([x, np.full(len(x), 255.0)], axis=-1)[None]
    _, lazy = Simulator(False).rollout(state, np.zeros(5), targets)
    monkeypatch.setattr(simulator, "_gap", lambda *_: -1.0)
    _, whole = Simulator(False).rollout(state, np.zeros(5), targets)
    moves = np.flatnonzero(np.abs(np.diff(whole[0, :, 0])) > 0.1)
    assert moves[0] < 10
    assert moves[-1] > 30
    assert np.diff(moves).max() > 10
    np.testing.assert_allclose(lazy, whole, atol=1e-3)


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
        quick = Planner(max_steps=30)
    slow = quick._attempt(SEED, 0)
    monkeypatch.undo()
    simulator.private_api_agrees.cache_clear()
    assert simulator.private_api_agrees()
    fast = quick._attempt(SEED, 0)
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

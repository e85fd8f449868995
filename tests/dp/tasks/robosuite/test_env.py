"""Robomimic's tasks in robosuite, where `DP_ROBOSUITE_PYTHON` says which Python has it."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dp.data.recording import n_episodes
from dp.tasks.robosuite import Robosuite, RobosuiteEnv
from dp.tasks.robosuite.task import TASKS
from tests.cli import run_py

PYTHON = os.environ.get("DP_ROBOSUITE_PYTHON")

if PYTHON is None:
    pytest.skip("set DP_ROBOSUITE_PYTHON to a Python that has robosuite", allow_module_level=True)

HAND = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2}
PICTURES = ["agentview_image", "robot0_eye_in_hand_image"]


def task_of(name: str, n_action: int = 7, pictures: tuple[str, ...] = ()) -> Robosuite:
    known = TASKS[name]
    numbers = {"type": "low_dim", "shape": [known.n_object]}
    obs = {"object": numbers, **{key: {"type": "low_dim", "shape": [size]} for key, size in HAND.items()}}
    obs |= {key: {"type": "rgb", "shape": [3, 84, 84]} for key in pictures}
    return Robosuite(name, {"obs": obs, "action": {"shape": [n_action * known.n_arms]}}, RobosuiteEnv)


def walked(env: RobosuiteEnv, seed: int, n_action: int, n_steps: int = 8) -> np.ndarray:
    """Observations of random actions from `seed`."""
    env.reset(seed)
    rng, rows = np.random.default_rng(0), []
    for _ in range(n_steps):
        rows.append(np.concatenate([value.ravel() for value in env.observe().values()]))
        env.step(rng.uniform(-1, 1, n_action).astype(np.float32))
    return np.array(rows)


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_is_an_episode_in_every_process_whatever_came_before(name):
    task = task_of(name)
    n_action = task.shape_meta["action"]["shape"][0]
    fresh, used = task.make_env(), task.make_env()
    expected, other = walked(fresh, 7, n_action), walked(used, 3, n_action)
    assert expected.shape[1] == TASKS[name].n_object + 9
    assert not np.array_equal(expected, other)
    assert np.array_equal(walked(used, 7, n_action), expected)
    assert np.array_equal(walked(fresh, 7, n_action), expected)


def test_a_picture_depends_on_the_seed_alone_and_is_the_right_way_up():
    task = task_of("Lift", pictures=tuple(PICTURES))
    used, env = task.make_env(), task.make_env()
    seen = []
    for one, seed in ((env, 1), (used, 2), (used, 1)):
        one.reset(seed)
        seen.append([one.observe()[name] for name in PICTURES])
    assert {picture.shape for picture in seen[0]} == {(84, 84, 3)}
    for first, other, again in zip(*seen, strict=True):
        assert np.array_equal(first, again)
        assert (first != other).any()
    agentview = seen[0][0].mean(axis=(1, 2))
    assert agentview[:10].mean() < 150 < 200 < agentview[-10:].mean()  # grey gripper and wall, white table
    assert env.render().shape == (256, 256, 3)


def test_an_absolute_action_is_a_pose_that_the_hand_takes():
    """Rotation in the form of Chi et al. 2023: the first two rows of its matrix."""
    moving, posing = task_of("Lift").make_env(), task_of("Lift", 10).make_env()
    for env in (moving, posing):
        env.reset(5)
    start = posing.state()
    # robosuite controls a site of the hand, a quarter turn from the body whose quaternion it observes.
    held = Rotation.from_quat(start["robot0_eef_quat"]) * Rotation.from_euler("z", -90, degrees=True)
    goal = start["robot0_eef_pos"] + [0.03, -0.02, 0.05]
    for _ in range(30):
        posing.step(np.concatenate([goal, held.as_matrix()[:2].ravel(), [1]]).astype(np.float32))
    reached = posing.state()
    assert np.allclose(reached["robot0_eef_pos"], goal, atol=0.01)
    assert np.allclose(reached["robot0_eef_quat"], start["robot0_eef_quat"], atol=0.05)
    moving.step(np.float32([0, 0, 1, 0, 0, 0, -1]))
    moved = moving.state()["robot0_eef_pos"] - start["robot0_eef_pos"]
    assert 0 < moved[2] < 0.05
    assert np.abs(moved[:2]).max() < 0.01


def test_an_unknown_observation_is_named():
    task = task_of("Lift")
    task.shape_meta["obs"]["side_image"] = {"type": "rgb", "shape": [3, 84, 84]}
    with pytest.raises(RuntimeError, match=r"obs\.side_image: robosuite has no such observation.*agentview_image"):
        task.make_env()


def test_the_demonstrator_lifts_and_goes_on_from_where_a_policy_led():
    task = task_of("Lift")
    exact, noisy = (partial(type(task.demonstrator), task.make_env) for _ in range(2))
    one, same = noisy()(1000), noisy()(1000)
    assert one.success
    assert np.array_equal(one.action, same.action)
    assert np.array_equal(one.obs["object"], same.obs["object"])
    assert np.array_equal(one.action[0], exact(noise=0.0)(1000).action[0])  # what was meant
    assert exact(max_steps=3)(1000) is None
    led = np.tile(np.float32([1, 0, 0, 0, 0, 0, 1]), (10, 1))
    finished = task.expert(1000, led)
    env = task.make_env()
    env.reset(1000)
    for action in led:
        env.step(action)
    assert finished.success
    assert np.array_equal(finished.obs["object"][0], env.observe()["object"])


def test_it_trains_and_is_evaluated_and_collected_elsewhere(tmp_path: Path):
    rollouts = ["env_runner.n_episodes=2", "env_runner.max_steps=9", "env_runner.n_train_episodes=0",
                "env_runner.n_videos=0", "logger.mode=disabled"]  # fmt: skip
    done = run_py(
        "+experiment=robosuite_state_small", "dataset.n_episodes=2", "device=cpu", "n_threads=1", *rollouts,
        "workspace.num_steps=2", "workspace.batch_size=4", "workspace.precision=fp32", "dataset.val_ratio=0",
        "lr_schedule.num_warmup_steps=1", "denoiser.channels=[16,32]", "denoiser.step_embed_dim=16",
        "scheduler.num_inference_steps=2", f"task.env.python={PYTHON}", "run_dir=run", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    common = ["workspace=evaluate", "checkpoint=run", *rollouts, "env_runner.n_workers=0"]
    refused = run_py(*common, "run_dir=no", cwd=tmp_path)
    assert f"If it is yours, add trust=[{PYTHON}]" in refused.stderr
    done = run_py(*common, f"trust=[{PYTHON}]", "run_dir=yes", "env_runner.n_envs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    again = json.loads((tmp_path / "yes/evaluation.json").read_text())
    assert again["score"] == next(row["rollout/score"] for row in rows if "rollout/score" in row)
    done = run_py("workspace=collect", "task=robosuite", "collector=robosuite", "workspace.n_episodes=1",
                  "workspace.n_workers=0", "workspace.path=one.zarr", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert n_episodes(tmp_path / "one.zarr") == 1

"""Meta-World: a seed is an episode, its experts demonstrate, and everything that PushT has works for it."""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import zarr

from dp.data.formats import open_store
from dp.data.recording import DemonstrationStore, n_episodes
from dp.data.summary import guess
from dp.processes import in_processes
from tests.cli import run_py

if importlib.util.find_spec("metaworld") is None:  # importing it would choose an OpenGL
    pytest.skip("needs the extra metaworld", allow_module_level=True)

from dp.tasks.metaworld import MetaWorld, MetaWorldEnv
from dp.tasks.metaworld import env as module
from dp.tasks.metaworld.scripted import Scripted

NUMBERS = ["hand", "objects", "goal"]


def draws() -> bool:
    try:
        MetaWorldEnv(NUMBERS, ["reach-v3"]).render()
    except ValueError:
        return False
    return True


def walked(env: MetaWorldEnv, seed: int, n_steps: int = 20) -> np.ndarray:
    """Observations of random actions from `seed`."""
    env.reset(seed)
    rng, rows = np.random.default_rng(0), []
    for _ in range(n_steps):
        rows.append(np.concatenate([env.observe()[name] for name in env.obs_names]))
        env.step(rng.uniform(-1, 1, 4).astype(np.float32))
    return np.array(rows)


@pytest.mark.parametrize("name", ["pick-place-v3", "drawer-open-v3", "peg-insert-side-v3"])
def test_a_seed_is_an_episode_whatever_came_before(name):
    fresh, used = (MetaWorldEnv(NUMBERS, [name]) for _ in range(2))
    expected, other = walked(fresh, 7), walked(used, 3)
    assert not np.array_equal(expected, other)
    assert np.array_equal(walked(used, 7), expected)


def test_an_observation_is_the_benchmarks():
    env = MetaWorldEnv(NUMBERS, ["push-v3"])
    env.reset(5)
    hand, objects, goal = env.observe().values()
    assert np.allclose(hand[:3], env._env.get_endeff_pos())
    assert np.allclose(objects[:3], env._env._get_pos_objects())
    assert np.allclose(goal, env._env._target_pos)
    assert 0.7 <= goal[1] <= 1.0  # visible, and of this task
    env.reset(6)
    assert not np.allclose(env.observe()["goal"], goal)


def test_several_tasks_take_turns_by_seed_and_the_policy_sees_which():
    env = MetaWorldEnv(["task", "hand"], ["reach-v3", "push-v3"])
    seen = []
    for seed in (0, 1, 2, 1):
        env.reset(seed)
        seen.append((env.name, env.observe()["task"].tolist()))
    assert seen == [("reach-v3", [1, 0]), ("push-v3", [0, 1]), ("reach-v3", [1, 0]), ("push-v3", [0, 1])]


def test_unusable_names_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(
        ValueError, match=r"Meta-World has no task pick-place-v2 \(task\.name, task\.tasks\)\. Similar: pick-place-v3"
    ):
        MetaWorldEnv(NUMBERS, ["pick-place-v2"])
    with pytest.raises(ValueError, match=r"obs\.side: Meta-World has no such observation\. Expected some of hand"):
        MetaWorldEnv(["side"], ["push-v3"])
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    module._benchmark.cache_clear()
    with pytest.raises(ValueError, match=r"Meta-World is not installed. Type: pip install -e '.\[metaworld\]'"):
        MetaWorldEnv(NUMBERS, ["push-v3"])
    monkeypatch.undo()
    module._benchmark.cache_clear()


def test_an_expert_demonstrates_the_same_in_another_process_and_says_what_it_meant():
    make_env = partial(MetaWorldEnv, obs_names=NUMBERS, tasks=["reach-v3"])
    noisy, exact = Scripted(make_env, noise=0.2), Scripted(make_env, noise=0.0)
    here = [noisy(seed) for seed in (1000, 1001)]
    there = [made for _, made in in_processes(noisy, [1000, 1001], 1)]
    for one, other in zip(here, there, strict=True):
        assert one.success
        assert np.array_equal(one.action, other.action)
        assert np.array_equal(one.obs["hand"], other.obs["hand"])
    assert not np.array_equal(here[0].obs["hand"][1], exact(1000).obs["hand"][1])  # where the noise led
    assert np.array_equal(here[0].action[0], exact(1000).action[0])  # what was meant
    assert len(Scripted(make_env, noise=0.0, n_frames_past_success=5)(1000)) == len(exact(1000)) + 5
    assert Scripted(make_env, max_steps=3)(1000) is None


def test_an_expert_goes_on_from_where_a_policy_led():
    task = MetaWorld("reach-v3", {"obs": {"hand": {"type": "low_dim", "shape": [4]}}}, MetaWorldEnv)
    led = np.tile(np.float32([-1, 0, 0, 0]), (15, 1))
    env = task.make_env()
    env.reset(4)
    for action in led:
        env.step(action)
    finished = task.expert(4, led)
    assert finished.success
    assert np.array_equal(finished.obs["hand"][0], env.observe()["hand"])


def test_an_expert_opens_the_gripper_that_a_policy_left_half_closed():
    task = MetaWorld("push-v3", {"obs": {"hand": {"type": "low_dim", "shape": [4]}}}, MetaWorldEnv)
    led = np.tile(np.array([0.1, 0.6, -0.4, 0.5], np.float32), (20, 1))
    assert all(task.expert(seed, led) is not None for seed in (3000, 3001))


def test_an_expert_that_comes_too_late_fails():
    task = MetaWorld("pick-place-v3", {"obs": {"hand": {"type": "low_dim", "shape": [4]}}}, MetaWorldEnv)
    assert task.expert(1000, np.zeros((490, 4), np.float32)) is None


def test_several_tasks_are_different_ones_and_the_vector_fits():
    shapes = {"obs": {"task": {"type": "low_dim", "shape": [3]}}}
    for tasks in ([], ["reach-v3", "reach-v3"]):
        with pytest.raises(ValueError, match="expected one or more different ones"):
            MetaWorld("mine", {"obs": {}}, tasks=tasks)
    with pytest.raises(ValueError, match=r"set task\.shape_meta\.obs\.task\.shape=\[2\]"):
        MetaWorld("mine", shapes, tasks=["reach-v3", "push-v3"])


@pytest.mark.skipif(not draws(), reason="needs an OpenGL for MuJoCo, such as libosmesa6")
def test_a_picture_depends_on_the_seed_alone():
    env = MetaWorldEnv(["front"], ["push-v3"], {"front": (32, 48)})
    pictures = []
    for seed in (1, 2, 1):
        env.reset(seed)
        pictures.append(env.observe()["front"])
    assert pictures[0].shape == (32, 48, 3)
    assert np.array_equal(pictures[0], pictures[2])
    assert (pictures[0] != pictures[1]).any()
    assert env.render().shape == (240, 320, 3)


ROLLOUTS = [
    "env_runner.n_episodes=3", "env_runner.max_steps=17", "env_runner.n_videos=0", "env_runner.n_train_episodes=1",
]  # fmt: skip

TINY = [
    "+experiment=metaworld_state_small", "task.name=reach-v3", "dataset.n_episodes=3", "device=cpu", "n_threads=1",
    "logger.mode=disabled", "workspace.num_steps=2", "workspace.batch_size=4", "workspace.precision=fp32",
    "lr_schedule.num_warmup_steps=1", "denoiser.channels=[16,32]", "denoiser.step_embed_dim=16",
    "scheduler.num_inference_steps=2", "dataset.val_ratio=0", "env_runner.n_workers=2", *ROLLOUTS,
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a short training in run/, with its demonstrations in data/."""
    place = tmp_path_factory.mktemp("metaworld")
    done = run_py(*TINY, "run_dir=run", cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def test_demonstrations_that_were_cut_off_are_completed(trained, tmp_path):
    (name,) = (str(path.relative_to(trained)) for path in trained.glob("data/reach-v3_3_*.zarr"))
    settings = json.loads((trained / name / ".zattrs").read_text())["collected_with"]
    sizes = {"hand": 4, "objects": 14, "goal": 3}
    shapes = {name: {"type": "low_dim", "shape": [size]} for name, size in sizes.items()}
    task = MetaWorld("reach-v3", {"obs": shapes, "action": {"shape": [4]}}, MetaWorldEnv)
    (tmp_path / "data").mkdir()
    with DemonstrationStore(tmp_path / name, settings, *task.columns()) as store:
        store.append([task.demonstrator(1000)], "scripted")
    done = run_py(*TINY, "workspace=inspect", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [
        {p.relative_to(place): p.read_bytes() for p in (place / name).rglob("*") if p.is_file()}
        for place in (trained, tmp_path)
    ]
    assert files[0] == files[1]


def test_a_test_does_not_depend_on_workers_and_environments(trained):
    done = run_py(
        "workspace=evaluate", "checkpoint=run", "run_dir=alone", "logger.mode=disabled", *ROLLOUTS,
        "env_runner.n_workers=0", "env_runner.n_envs=1", cwd=trained,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (trained / "run/metrics.jsonl").read_text().splitlines()]
    alone = json.loads((trained / "alone/evaluation.json").read_text())
    assert alone["score"] == next(row["rollout/score"] for row in rows if "rollout/score" in row)


def test_another_task_is_refused_before_its_demonstrations_are_made(trained):
    done = run_py(*TINY, "task.name=push-v3", "run_dir=run", cwd=trained)
    assert "run holds another run: task.name=reach-v3 there, push-v3 here" in done.stderr
    assert not list(trained.glob("data/push-v3*"))


def test_demonstrations_with_noise_are_replayed_as_they_were_executed(trained):
    done = run_py(
        "workspace=evaluate", "workspace.baseline=replay", "task=metaworld", "task.name=reach-v3", "dataset=collected",
        "dataset.n_episodes=3", "env_runner.start_seed=1000", "env_runner.n_episodes=3", "env_runner.n_videos=0",
        "env_runner.n_workers=0", "logger.mode=disabled", "run_dir=replayed", cwd=trained,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = trained.glob("data/reach-v3_3_*.zarr")
    store = zarr.open_group(str(path), mode="r")
    assert not np.array_equal(store["data/action"][:], store["data/executed"][:])
    assert set(guess(open_store(path))["obs"]) == set(NUMBERS)
    rows = json.loads((trained / "replayed/evaluation.json").read_text())["episodes"]
    assert [row["success"] for row in rows] == [True] * 3
    assert [row["length"] for row in rows] == np.diff(store["meta/episode_ends"][:], prepend=0).tolist()


def test_its_experts_collect_and_take_over(trained):
    common = ["workspace=collect", "workspace.n_episodes=1", "workspace.n_workers=0"]
    scripted = ["collector=scripted", "task=metaworld", "task.name=reach-v3"]
    for chosen in (scripted, ["collector=takeover", "checkpoint=run", "env_runner.max_steps=17"]):
        path = f"{chosen[0].partition('=')[2]}.zarr"
        done = run_py(*common, *chosen, f"workspace.path={path}", cwd=trained)
        assert done.returncode == 0, done.stderr
        assert n_episodes(trained / path) == 1
        assert "train on them: python run.py +experiment=metaworld_state_small task.name=reach-v3" in done.stderr
    late = run_py(*TINY, "workspace=inspect", "dataset.start_seed=100000", cwd=trained)
    assert "dataset.start_seed=100000, expected 1000 to 99999: the task reach-v3 keeps other seeds" in late.stderr
    other = run_py(*common, *scripted[:2], "task.name=push-v3", "workspace.path=scripted.zarr", cwd=trained)
    assert 'was collected with other settings (task="reach-v3" there, "push-v3" here)' in other.stderr
    wrong = run_py(*common, "collector=scripted", "task=pusht_state", "workspace.path=wrong.zarr", cwd=trained)
    assert "error: collector=scripted demonstrates Meta-World: set task=metaworld, not PushTEnv" in wrong.stderr

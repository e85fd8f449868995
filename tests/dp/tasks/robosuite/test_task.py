"""Robomimic's tasks, without robosuite: facts, what is said where it is missing, the demonstrator's geometry."""

import importlib.util
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from dp.tasks.pusht import PushTEnv
from dp.tasks.robosuite import Robosuite, RobosuiteEnv
from dp.tasks.robosuite.lifter import Lifter, _Hand, _to_face
from dp.tasks.robosuite.task import TASKS
from workspaces import trust

CONFIGS = Path(__file__).parents[4] / "configs/task"


def shape_meta(n_object: int, n_action: int) -> dict:
    return {"obs": {"object": {"type": "low_dim", "shape": [n_object]}}, "action": {"shape": [n_action]}}


@pytest.mark.parametrize(("name", "n_steps"), [("Lift", 400), ("Can", 400), ("Square", 400), ("Transport", 700)])
def test_a_task_is_tested_as_in_the_paper(name: str, n_steps: int) -> None:
    task = Robosuite(name, shape_meta(TASKS[name].n_object, 7 * TASKS[name].n_arms))
    protocol = task.protocol(None)
    assert (protocol.n_episodes, protocol.start_seed, protocol.max_steps) == (50, 100_000, n_steps)
    assert task.protocol("robomimic-500").max_steps == n_steps
    assert protocol.start_seed not in task.demonstration_seeds
    assert (
        Robosuite(name, task.shape_meta, protocols={"mine": {"n_episodes": 1, "start_seed": 1, "max_steps": 2}})
        .protocol(None)
        .name
        == "mine"
    )


def test_names_and_lengths_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"name=lift, expected one of Lift, Can, Square, ToolHang, Transport"):
        Robosuite("lift", shape_meta(10, 7))
    with pytest.raises(
        ValueError, match=r"object\.shape=\[10\] does not fit Can: set task\.shape_meta\.obs\.object\.shape=\[14\]"
    ):
        Robosuite("Can", shape_meta(10, 7))
    with pytest.raises(
        ValueError, match=r"set task\.shape_meta\.action\.shape=\[14\] or task\.shape_meta\.action\.shape=\[20\]"
    ):
        Robosuite("Transport", shape_meta(41, 7))


@pytest.mark.parametrize(("file", "n_numbers"), [("robosuite", 19), ("robosuite_image", 9)])
def test_the_configurations_have_robomimics_observations(file: str, n_numbers: int) -> None:
    config = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text())
    task = Robosuite(config["name"], config["shape_meta"], RobosuiteEnv)
    shapes = {name: entry["shape"] for name, entry in config["shape_meta"]["obs"].items()}
    assert sum(shape[0] for shape in shapes.values() if len(shape) == 1) == n_numbers
    make_env = task.make_env
    assert isinstance(make_env, partial)
    pictures = {name: (84, 84) for name in shapes if name.endswith("_image")}
    assert (make_env.keywords["sizes"], make_env.keywords["absolute"]) == (pictures, False)


def test_the_length_of_the_action_says_its_kind() -> None:
    for n_action, absolute in ((7, False), (10, True)):
        task = Robosuite("Lift", shape_meta(10, n_action), RobosuiteEnv)
        assert task.make_env.keywords["absolute"] is absolute
        assert (task.demonstrator is None) is absolute  # which moves
    assert Robosuite("Can", shape_meta(14, 7), RobosuiteEnv).demonstrator is None


@pytest.mark.skipif(importlib.util.find_spec("robosuite") is not None, reason="robosuite is installed here")
def test_a_python_without_robosuite_is_answered_with_what_to_install(capfd: pytest.CaptureFixture) -> None:
    make_env = Robosuite("Lift", shape_meta(10, 7), partial(RobosuiteEnv, python=sys.executable)).make_env
    assert make_env is not None
    with pytest.raises(
        ValueError, match=r"has no module 'robosuite'\. Type: PYTHON -m pip install 'robosuite=="
    ) as raised:
        make_env()
    assert sys.executable in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr().err == ""


def test_the_python_is_the_one_that_the_variable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DP_ROBOSUITE_PYTHON", "/no/python")
    make_env = Robosuite("Lift", shape_meta(10, 7), RobosuiteEnv).make_env
    assert make_env is not None
    with pytest.raises(ValueError, match=r"task\.env\.python=/no/python: No such file"):
        make_env()
    with pytest.raises(ValueError, match=r"task\.env\.python=/typed: No such file"):
        make_env(python="/typed")


def test_a_program_that_only_a_file_names_is_not_started() -> None:
    task = yaml.safe_load((CONFIGS / "robosuite.yaml").read_text())
    trust.check_targets({"task": task}, places=["task", "task.env"])
    task["env"]["python"] = "/mnt/theirs/python"
    with pytest.raises(
        ValueError,
        match=r"program task\.env\.python=/mnt/theirs/python, .*If it is yours, add trust=\[/mnt/theirs/python\]",
    ):
        trust.check_targets({"task": task}, places=["task", "task.env"])
    assert trust.packages_of({"task": task}) == ["/mnt/theirs/python"]  # which the command to evaluate it then says
    trust.check_targets({"task": task}, ["/mnt/theirs/python"], places=["task", "task.env"])


def test_the_demonstrator_of_another_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"collector=robosuite lifts the cube of Lift.*set task=robosuite"):
        Lifter(partial(PushTEnv, ["agent_pos"]))(1000)


def state(cube: list[float], hand: list[float]) -> Mapping[str, np.ndarray]:
    down = np.array([1.0, 0, 0, 0])
    return {"cube_pos": np.array(cube), "robot0_eef_pos": np.array(hand), "cube_quat": np.array([0, 0, 0, 1.0]),
            "robot0_eef_quat": down}  # fmt: skip


def test_the_demonstrator_aligns_goes_down_closes_and_lifts() -> None:
    hand = _Hand()
    aside = hand.action(state([0.05, 0, 0.82], [0, 0, 1.0]))
    assert aside[0] > 0 > aside[2]
    assert aside[6] == -1
    assert hand.action(state([0, 0, 0.82], [0, 0, 0.9]))[2] < 0
    closing = [hand.action(state([0, 0, 0.82], [0, 0, 0.82])) for _ in range(8)]
    assert [action[6] for action in closing] == [1] * 8
    assert closing[0][2] == 0 < closing[-1][2]
    assert hand.action(state([0.1, 0, 0.82], [0, 0, 0.9]))[6] == -1  # it lost the cube


def test_a_cube_is_grasped_by_its_closest_faces() -> None:
    assert _to_face(0.1) == pytest.approx(0.1)
    assert _to_face(np.pi / 2 - 0.1) == pytest.approx(-0.1)
    assert _to_face(-np.pi + 0.2) == pytest.approx(0.2)

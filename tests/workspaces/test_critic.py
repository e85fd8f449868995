"""`workspace=critic`, as a user types it."""

import json

import numpy as np
import pytest

from tests.cli import run_py
from workspaces import critic

PRACTICE = [
    "workspace=critic", "device=cpu", "logger.mode=disabled", "env_runner.max_steps=20", "env_runner.n_workers=0",
    "workspace.n_episodes=3", "workspace.n_plans=3", "workspace.num_steps=20", "workspace.width=16",
]  # fmt: skip


@pytest.fixture
def trained(run, tmp_path):
    result = run("run_dir=trained", "workspace.num_steps=2", "workspace.every.rollout=100")
    assert result.returncode == 0, result.stderr
    return tmp_path


def practise(where, *overrides):
    return run_py(*PRACTICE, *overrides, cwd=where, timeout=120)


def test_it_is_trained_used_and_made_again_to_the_bit(trained):
    made = practise(trained, "checkpoint=trained", "run_dir=critic")
    assert made.returncode == 0, made.stderr
    learned = (trained / "critic/critic.safetensors").read_bytes()
    assert json.loads((trained / "critic/run.json").read_text())["state"] == "finished"
    assert "9 decisions" not in made.stderr
    assert "by the critic's choice" in made.stderr
    # A command that it names works.
    use = ["guidance=best_of_n", "guidance.path=critic", "guidance.n=3"]
    assert "guidance=best_of_n guidance.path=critic" in made.stderr
    roll = ["device=cpu", "logger.mode=disabled", "env_runner.n_workers=0", "env_runner.n_episodes=2"]
    result = run_py("workspace=evaluate", "checkpoint=trained", "run_dir=e", *roll, *use, cwd=trained)
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((trained / "e/evaluation.json").read_text())
    assert evaluation["privileged"] is False
    assert evaluation["settings"]["guidance"]["path"] == "critic"
    # What is left of the practice is not made again.
    (trained / "critic/critic.safetensors").unlink()
    again = practise(trained, "checkpoint=trained", "run_dir=critic")
    assert again.returncode == 0, again.stderr
    assert (trained / "critic/critic.safetensors").read_bytes() == learned
    for file in (trained / "critic/lessons").glob("*.npz"):
        file.unlink()
    assert practise(trained, "checkpoint=trained", "run_dir=critic").returncode == 0
    assert (trained / "critic/critic.safetensors").read_bytes() == learned
    other = practise(trained, "checkpoint=trained", "run_dir=critic", "workspace.n_plans=4")
    assert "critic holds other practice (n_plans=3 there, 4 here): set another run_dir" in other.stderr
    assert json.loads((trained / "critic/run.json").read_text())["state"] == "finished"
    # Damaged practice is named.
    (trained / "critic/critic.safetensors").unlink()
    lessons = next((trained / "critic/lessons").glob("*.npz"))
    whole = lessons.read_bytes()
    lessons.write_bytes(whole[: len(whole) // 2])
    damaged = practise(trained, "checkpoint=trained", "run_dir=critic")
    assert damaged.returncode == 1
    assert "npz is damaged" in damaged.stderr
    assert "delete it and repeat the command" in damaged.stderr


def test_damaged_lessons_are_named(tmp_path):
    arrays = {name: np.zeros(shape, np.float16) for name, shape in
              (("cond", (4, 2, 3)), ("plans", (4, 5, 8, 2)), ("costs", (4, 5)))}  # fmt: skip
    lessons = tmp_path / "7.npz"
    np.savez(lessons, **arrays)
    assert critic._read(lessons).keys() == arrays.keys()
    whole = lessons.read_bytes()
    for damage in (
        lambda: lessons.write_bytes(b""),
        lambda: lessons.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]),
        lambda: np.savez(lessons, **{**arrays, "costs": arrays["costs"][1:]}),
        lambda: np.savez(lessons, **{**arrays, "plans": arrays["plans"][:, 0]}),
        lambda: np.savez(lessons, cond=arrays["cond"], plans=arrays["plans"]),
        lambda: np.savez(lessons, **{**arrays, "costs": arrays["costs"].astype(str)}),
    ):
        damage()
        with pytest.raises(ValueError, match=r"7\.npz is damaged .*: delete it and repeat the command"):
            critic._read(lessons)


def test_another_command_does_not_write_into_its_directory(trained):
    before = {file: file.read_bytes() for file in (trained / "trained").rglob("*") if file.is_file()}
    evaluate = ["workspace=evaluate", "device=cpu", "logger.mode=disabled", "env_runner.n_episodes=1"]
    for typed in (PRACTICE, evaluate):
        result = run_py(*typed, "checkpoint=trained", "run_dir=trained", cwd=trained)
        assert result.returncode == 1
        assert "trained holds what workspace=train wrote: set another run_dir" in result.stderr
    assert {file: file.read_bytes() for file in (trained / "trained").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["checkpoint=trained", "workspace.n_episodes=1", "env_runner.max_steps=4"],
            "1 decisions with 3 known costs are too few to learn from: set a larger workspace.n_episodes",
        ),
        ([], "set checkpoint=PATH: a critic learns to choose among the plans of a policy"),
        (["checkpoint=trained", "workspace.start_seed=100000"], "expected seeds from 206 to 99999"),
        (["checkpoint=trained", "workspace.n_plans=0"], "workspace.n_plans=0, expected"),
    ],
)
def test_mistakes_are_one_line(trained, overrides, said):
    result = practise(trained, *overrides)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr

"""An environment in another interpreter, which has numpy, a simulator of its own, and nothing else."""

import sys
from pathlib import Path

import numpy as np
import pytest

from dp.tasks import Elsewhere

SIMULATOR = """
import os, sys
import numpy as np

class Old:
    control_hz = 5
    def __init__(self, speed, obs_names=()):
        self.speed, self.obs_names = speed, list(obs_names)
        print("hello from an old simulator")
    def reset(self, seed):
        self.x = np.random.RandomState(seed).uniform(-1, 1, 2)
        if seed == 13:
            os._exit(3)
    def observe(self):
        return {"x": self.x.astype(np.float32), "picture": np.full((4, 6, 3), int(self.reward < -1), np.uint8)}
    def step(self, action):
        if not np.isfinite(action).all():
            raise ValueError("an action that is not finite")
        self.x = self.x + self.speed * action
    @property
    def reward(self):
        return -np.abs(self.x).sum()
    @property
    def success(self):
        return bool(self.reward > -0.1)
    @property
    def terminated(self):
        return False
    def info(self):
        return {"x": float(self.x[0]), "modules": float("jaxtyping" in sys.modules or "torch" in sys.modules)}
    def render(self):
        return np.zeros((4, 6, 3), np.uint8)
"""


@pytest.fixture
def python(tmp_path: Path, monkeypatch) -> str:
    """An interpreter that finds numpy and a package that this one does not."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old/oldsim.py").write_text(SIMULATOR)
    packages = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (packages / name).exists():
            (tmp_path / "old" / name).symlink_to(packages / name)
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path / "old"} exec {sys.executable} -S "$@"\n')
    script.chmod(0o755)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    return str(script)


def test_it_is_the_environment_that_it_would_be_here(python, monkeypatch, capfd):
    env = Elsewhere(["x"], "oldsim:Old", python, {"speed": 0.5, "obs_names": None})
    namespace: dict = {}
    exec(SIMULATOR, namespace)
    here = namespace["Old"](0.5)
    assert env.control_hz == 5.0
    for seed in (3, 4, 3):
        env.reset(seed)
        here.reset(seed)
        for action in np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype(np.float32):
            env.step(action)
            here.step(action)
            assert (env.reward, env.success, env.terminated) == (here.reward, here.success, here.terminated)
            assert env.info() == {"x": here.info()["x"], "modules": 0.0}
        for name, value in here.observe().items():
            assert np.array_equal(env.observe()[name], value)
            assert env.observe()[name].dtype == value.dtype
        assert env.render().shape == (4, 6, 3)
    assert "hello" in capfd.readouterr().err


def test_a_file_may_hold_it_and_what_lies_next_to_the_file_is_not_found(python, tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/here.py").write_text(SIMULATOR)
    (tmp_path / "lab/json.py").write_text("raise SystemExit")
    env = Elsewhere(["x"], f"{tmp_path}/lab/here.py:Old", python, {"speed": 1})
    env.reset(3)
    assert env.observe()["x"].shape == (2,)


def test_its_faults_are_named(python, tmp_path):
    with pytest.raises(ValueError, match=r"task\.env\.python=/no/python: No such file or directory\."):
        Elsewhere(["x"], "oldsim:Old", "/no/python", {"speed": 1})
    with pytest.raises(ValueError, match=r"task\.env\.target=oldsim, expected package\.module:Class"):
        Elsewhere(["x"], "oldsim", python)
    with pytest.raises(RuntimeError, match=r"nosim:Old in \S+python: ModuleNotFoundError: No module named 'nosim'"):
        Elsewhere(["x"], "nosim:Old", python)
    with pytest.raises(RuntimeError, match=r"TypeError: .*speed"):
        Elsewhere(["x"], "oldsim:Old", python)
    env = Elsewhere(["x"], "oldsim:Old", python, {"speed": 1})
    env.reset(0)
    with pytest.raises(RuntimeError, match="ValueError: an action that is not finite"):
        env.step(np.array([np.nan, 0]))
    env.step(np.zeros(2))  # it goes on
    with pytest.raises(RuntimeError, match=r"the process of oldsim:Old died \(exit code 3\) in reset"):
        env.reset(13)


def test_it_ends_with_its_owner(python):
    env = Elsewhere(["x"], "oldsim:Old", python, {"speed": 1})
    process = env._remote._process
    del env
    assert process.poll() == 0

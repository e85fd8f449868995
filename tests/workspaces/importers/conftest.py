"""Policies of other projects, written into a folder, and read as a command reads them."""

import copy
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from dp.policy import DiffusionPolicy
from tests import lerobot_policies
from tests.test_configs import CONFIGS
from workspaces import build
from workspaces.config import Config
from workspaces.evaluate import policy_of, read_policy

DATA = Path(__file__).parent.parent.parent / "data"

TASKS = {
    "state": "{obs: {state: {shape: [2]}, env: {shape: [16], key: observation.environment_state}}",
    "cameras": "{obs: {env: {shape: [2], key: observation.environment_state}, wrist: {type: rgb, shape: [3, 60, 80]}, "
    "state: {shape: [3]}, top: {type: rgb, shape: [3, 60, 80]}}",
    "shared": "{obs: {b: {type: rgb, shape: [3, 48, 64]}, x: {shape: [3]}, a: {type: rgb, shape: [3, 48, 64]}}",
}
"""Name of a LeRobot policy -> observations of a task for it, in another order than the policy's."""


@cache
def composed(*overrides: str) -> Config:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return build.settings(compose("config", list(overrides)))


def given(*overrides: str) -> Config:
    """The composed configuration of a command, as `run.py` hands it to a workspace."""
    return copy.deepcopy(composed(*overrides))


def given_for(case: str) -> Config:
    own = [] if case == "image" else ["task=own", f"task.shape_meta={TASKS[case]}, action: {{shape: [2]}}}}"]
    return given(*own)


def loaded(path: Path, config: Config) -> tuple[DiffusionPolicy, Config]:
    """The policy of a checkpoint, and its configuration."""
    found, state = read_policy(str(path), config)
    resolved = build.resolve(state["config"])
    return policy_of(found, state, resolved).eval(), resolved


@pytest.fixture
def lerobot(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a policy of `tests/data/lerobot` with its weights."""

    def write(case: str) -> Path:
        folder = tmp_path / case
        shutil.copytree(DATA / "lerobot" / case, folder)
        if (folder / "shapes.json").exists():
            weights = lerobot_policies.filled(json.loads((folder / "shapes.json").read_text()))
            save_file(weights, folder / "model.safetensors")
        return folder

    return write

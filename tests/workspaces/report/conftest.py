"""A small sweep of real runs, made once; and runs made up in memory, for the arithmetic."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from dp.tasks import Task
from dp.tasks.pusht import PushT
from tests.cli import RUN, run_py
from tests.workspaces.conftest import SMALL
from workspaces import build
from workspaces.report import ReportWorkspace
from workspaces.report.runs import Protocol, Run, Words

CONFIGS = RUN.parent / "configs"
QUICK = ["env_runner.max_steps=20", "env_runner.n_workers=0", "logger.mode=disabled", "device=cpu"]


def start(*overrides: str) -> None:
    result = run_py(*overrides, cwd=RUN.parent, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="session")
def made(small_zarr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings of 24 steps, horizon 16 and 10, and an evaluation of the first with two inference steps."""
    folder = tmp_path_factory.mktemp("report") / "sweep"
    for horizon in (16, 10):
        start(*SMALL, f"dataset.path={small_zarr}", f"horizon={horizon}", f"run_dir={folder}/h{horizon}")
    evaluate = ["workspace=evaluate", *QUICK, "env_runner.n_episodes=4", "env_runner.n_videos=2"]
    of = [f"checkpoint={folder}/h16/checkpoints/last.pt", "scheduler.num_inference_steps=2"]
    start(*evaluate, *of, f"run_dir={folder}/h16-evaluated")
    return folder


@pytest.fixture
def sweep(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage. Its evaluations know their trainings by their names."""
    shutil.copytree(made, tmp_path / "sweep")
    for file in (tmp_path / "sweep").glob("*/evaluation.json"):
        file.write_text(file.read_text().replace(str(made), str(tmp_path / "sweep")))
    return tmp_path / "sweep"


@pytest.fixture
def report() -> Callable[..., ReportWorkspace]:
    """Writes a report as `python run.py workspace=report` does, in this process."""

    def call(runs: Path, *overrides: str) -> ReportWorkspace:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            workspace = build.workspace(compose("config", ["workspace=report", f"runs={runs}", *overrides]))
        assert isinstance(workspace, ReportWorkspace)
        with workspace:
            workspace.run()
        return workspace

    return call


def pusht(*obs: str) -> PushT:
    shape_meta = {"obs": {name: {"shape": [2]} for name in obs}, "action": {"shape": [2]}}
    return PushT(f"pusht_{'image' if 'image' in obs else 'state'}", shape_meta)


STATE, IMAGE = pusht("agent_pos", "block_pose"), pusht("agent_pos", "image")


def made_up(
    rewards: list[float],
    first: int = 100_000,
    max_steps: int = 300,
    path: str = "run",
    task: Task = STATE,
    **settings: Any,
) -> Run:
    """A run of `task` with these best rewards; without any, one that was never rolled out.

    Keyword arguments with `__` for dots are its configuration.
    """
    config: dict[str, Any] = {
        "name": "pusht", "seed": 0, "horizon": 16, "n_obs_steps": 2, "n_action_steps": 8,
        "scheduler": {"_target_": "diffusers.DDIMScheduler", "num_inference_steps": 10},
        "task": {"name": task.name}, "workspace": {"num_steps": 10},
    }  # fmt: skip
    about = {
        key: settings.pop(key)
        for key in ("verb", "state", "record", "metrics", "inference_ms", "privileged")
        if key in settings
    }
    for key, value in settings.items():
        *groups, last = key.split("__")
        node = config
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    rows = [
        {"seed": first + i, "max_reward": r, "success": r >= 1, "length": max_steps, "final_coverage": r / 2}
        for i, r in enumerate(rewards)
    ]
    protocol = Protocol(
        task.name, first, first + len(rewards) - 1, max_steps, task.name_of(len(rewards), first, max_steps)
    )
    if not rewards:
        protocol = Protocol.without_rollouts(task.name)
    words = Words(task.score, task.success, task.reset)
    common = {"verb": "train", "state": "finished", "record": {"ended": "2030-01-01T00:00:00+00:00"}, "metrics": []}
    facts: dict[str, Any] = {"task": task, "words": words, "protocol": protocol, "episodes": rows, "step": 10}
    return Run(path=Path(path), config=config, **facts, **(common | about))

"""What files hold: configurations of earlier versions in the form of today's, and what they say of their task."""

import copy
from collections.abc import Collection
from typing import Any

from dp.tasks import Task
from workspaces import trust

Config = dict[str, Any]

MOVED = {
    "dp.envs.PushTEnv": "dp.tasks.pusht.PushTEnv",
    "dp.rollout.EnvRunner": "dp.rollouts.runner.EnvRunner",
}
"""Where classes were, and where they are."""


def migrate(config: Config) -> Config:
    """`config` of a checkpoint or run directory, whichever version wrote it, as today's version writes it.

    Version 1 (to November 2026): `task.shape_meta` maps a name to its shape, every task is PushT, and every objective
    diffusion.
    """
    config = copy.deepcopy(config)
    if "denoiser" in config:
        config.setdefault("objective", {"_target_": "dp.objectives.Diffusion"})
    task = config.get("task")
    if isinstance(task, dict) and "_target_" not in task:
        shapes = task["shape_meta"]["obs"]
        kind = next((kind for kind in ("image", "keypoint") if kind in shapes), "state")
        obs = {
            name: {"type": "rgb" if name == "image" else "low_dim", "shape": shape} for name, shape in shapes.items()
        }
        config["task"] = {
            "_target_": "dp.tasks.pusht.PushT",
            "name": f"pusht_{kind}",
            "shape_meta": {"obs": obs, "action": {"shape": task["shape_meta"]["action"]}},
            "protocols": None,
            "env": task["env"],
        }
    return _moved(config)


def _moved(node: Any) -> Any:
    if isinstance(node, list):
        return [_moved(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(value) for key, value in node.items()}
    if isinstance(moved.get("_target_"), str):
        moved["_target_"] = MOVED.get(moved["_target_"], moved["_target_"])
    return moved


def task_of(config: Config, trusted: Collection[str] = ()) -> Task:
    """The task that a run directory's `config` names, for its facts and pictures.

    A class that is neither ours nor in one of the packages `trusted` is not imported: then a `Task` that knows no more
    than its name and observations, without an environment.
    """
    task = config["task"]
    try:
        trust.check_targets(config)
    except ValueError:
        return Task(str(task.get("name", "task")), task["shape_meta"])
    from workspaces import build

    return build.task(config)

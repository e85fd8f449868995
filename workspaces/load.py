"""Converts files of earlier versions to today's form."""

import copy
from typing import Any

from workspaces.config import Config
from workspaces.schema import Schema, check

MOVED = {
    "dp.data.Demonstrations": "dp.tasks.pusht.demonstrations.PushTDemonstrations",
    "dp.envs.PushTEnv": "dp.tasks.pusht.PushTEnv",
    "dp.collectors.rollouts.rollouts": "dp.rollouts.demonstrator.rollouts",
    "dp.collectors.planner.Planner": "dp.tasks.pusht.expert.planner.Planner",
    "dp.collectors.mouse.Mouse": "dp.tasks.pusht.mouse.Mouse",
    "dp.rollout.EnvRunner": "dp.rollouts.EnvRunner",
}
"""Earlier names of classes -> today's."""

VERSION_1: Schema = {"shape_meta": {"obs": dict, "action": list}, "env": dict}
"""Schema of a task in version 1."""

IMAGE_ENCODERS = ("dp.encoders.CNNEncoder", "dp.encoders.ResNetEncoder")


def migrate(config: Config) -> Config:
    """`config` of a checkpoint or run directory, whichever version wrote it, as today's version writes it.

    Version 1 (to November 2026): `task.shape_meta` maps a name to its shape, every task is PushT, and every objective
    diffusion. It had no `kernels`, and its image encoders had fewer options.

    Raises ValueError for a task that no version wrote.
    """
    config = {"kernels": "auto", "guidance": {"_target_": "dp.guidance.Unguided"}, **copy.deepcopy(config)}
    if "denoiser" in config:
        config.setdefault("objective", {"_target_": "dp.objectives.Diffusion"})
    encoder = config.get("encoder")
    if isinstance(encoder, dict) and encoder.get("_target_") in IMAGE_ENCODERS:
        config["encoder"] = _with_defaults(encoder)
    task = config.get("task")
    if isinstance(task, dict) and "_target_" not in task:
        check(task, VERSION_1, "the task")
        # Version 1 had no names of tasks. The observations tell which of PushT's it is.
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
        if config.get("name") == "pusht":  # nobody had chosen one
            config["name"] = config["task"]["name"]
    if isinstance(config.get("env_runner"), dict):
        config["env_runner"] = {"n_late": 0, "kick": 0.0, **config["env_runner"]}
    _name_protocol(config)
    return _moved(config)


def _name_protocol(config: Config) -> None:
    """Adds the protocol's name, which version 1 did not have, by its numbers."""
    runner = config.get("env_runner")
    if isinstance(runner, dict) and "protocol" not in runner:
        numbers = (runner.get("n_episodes"), runner.get("start_seed"), runner.get("max_steps"))
        names: dict[tuple, str] = {(50, 100_000, 300): "paper-50", (500, 100_000, 300): "paper-500"}
        runner["protocol"] = names.get(numbers, "custom")


def migrate_weights(weights: Any, config: Config) -> Any:
    """A policy's state dict in the form of today's.

    Version 1 had one camera, `image`, and called its network `backbone`. An encoder of the user's own keeps its names.
    """
    encoder = config.get("encoder")
    if not isinstance(weights, dict) or not isinstance(encoder, dict) or encoder.get("_target_") not in IMAGE_ENCODERS:
        return weights
    return {_renamed(name): tensor for name, tensor in weights.items()}


def _renamed(name: Any) -> Any:
    old, new = "encoder.backbone.", "encoder.backbones.image."
    return new + name[len(old) :] if isinstance(name, str) and name.startswith(old) else name


def _with_defaults(encoder: dict[str, Any]) -> dict[str, Any]:
    """`encoder` with the later arguments of image encoders, set so that they change nothing."""
    more = {"norm": "group", "final_relu": False} if encoder["_target_"].endswith("ResNetEncoder") else {}
    return {
        **more, "mean": 0.5, "std": 0.5, "jitter": 0.0, "erase": 0.0, "shared": False, "fuse": "concat",
        "resize": None, **encoder,
    }  # fmt: skip


def _moved(node: Any) -> Any:
    if isinstance(node, list):
        return [_moved(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    moved = {key: _moved(value) for key, value in node.items()}
    if isinstance(moved.get("_target_"), str):
        moved["_target_"] = MOVED.get(moved["_target_"], moved["_target_"])
    return moved

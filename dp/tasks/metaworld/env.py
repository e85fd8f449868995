"""Meta-World's environments as an `Env`, started from a seed."""

import contextlib
import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

INSTALL = "Meta-World is not installed. Type: pip install -e '.[metaworld]'"

LARGEST_REWARD = 10.0

HAND, OBJECTS, GOAL = slice(0, 4), slice(4, 18), slice(36, 39)
"""Where they lie in the benchmark's observation. Between them is the one of a step before."""

FRONT = "front"
"""A camera, near and the right way up, as 3D Diffusion Policy (Ze et al. 2024) and LeRobot see the table."""

BEHIND_FRONT, FRONT_POSITION = "corner2", (0.75, 0.075, 0.7)
"""The benchmark's camera that becomes `FRONT`, and its position in metres."""

PICTURE = (240, 320)
"""Size of the picture for people."""


class MetaWorldEnv:
    """One task, or several of which a seed chooses one: tasks[seed % n].

    The seed draws where objects and goal lie, from all places that the benchmark allows. The goal is visible. The
    episode ends when the task is solved as the benchmark defines it, or after 500 steps.

    Args:
        obs_names: what `observe` returns: "hand" (4,), position in metres and how far the gripper is open, 0..1;
            "objects" (14,), position and quaternion of one or two; "goal" (3,), metres; "task" (n,), 1 at the task's
            place in `tasks`; a camera's name, for a picture.
        tasks: names, for example ["pick-place-v3"].
        sizes: camera -> (height, width) of its picture.

    Raises:
        ValueError: for an unknown task or camera; if Meta-World is not installed.
    """

    control_hz = 80.0

    def __init__(
        self, obs_names: Sequence[str], tasks: Sequence[str], sizes: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        known = list(_benchmark())
        for name in tasks:
            if name not in known:
                near = difflib.get_close_matches(name, known, 3, 0.4) or known
                raise ValueError(f"Meta-World has no task {name} (task.name, task.tasks). Similar: {', '.join(near)}")
        self.obs_names, self.tasks, self._sizes = tuple(obs_names), tuple(tasks), dict(sizes or {})
        self._made: dict[str, Any] = {}
        self._pictures: dict[tuple[str, str, tuple[int, int]], Any] = {}
        self.reset(0)
        self._check_names()

    def reset(self, seed: int) -> None:
        self.name = self.tasks[seed % len(self.tasks)]
        if self.name not in self._made:
            self._made[self.name] = _make(self.name)
        self._env = self._made[self.name]
        self._env.seed(seed)
        self.raw, _ = self._env.reset()  # the benchmark's observation (39,), which scripted experts read
        self._reward, self._success, self._info = 0.0, False, {"obj_to_target": np.nan}

    def step(self, action: Float[np.ndarray, "4"]) -> None:
        """action: movement along x, y and z, and closing of the gripper, each clipped to [-1, 1]."""
        self.raw, reward, _, _, self._info = self._env.step(np.clip(action, -1, 1).astype(np.float32))
        self._success = bool(self._info["success"])
        self._reward = 1.0 if self._success else float(reward) / LARGEST_REWARD

    def observe(self) -> dict[str, np.ndarray]:
        numbers = {"hand": self.raw[HAND], "objects": self.raw[OBJECTS], "goal": self.raw[GOAL]}
        numbers["task"] = np.array([name == self.name for name in self.tasks])
        return {
            name: numbers[name].astype(np.float32) if name in numbers else self._picture(name, self._sizes[name])
            for name in self.obs_names
        }

    @property
    def reward(self) -> float:
        return self._reward

    @property
    def success(self) -> bool:
        return self._success

    @property
    def over(self) -> bool:
        """Whether the benchmark's time is up."""
        return self._env.curr_path_length >= self._env.max_path_length

    @property
    def terminated(self) -> bool:
        return self._success or self.over

    def info(self) -> dict[str, float]:
        return {"distance": float(self._info["obj_to_target"])}

    def render(self) -> UInt8[np.ndarray, "240 320 3"]:
        return self._picture(FRONT, PICTURE)

    def _picture(self, camera: str, size: tuple[int, int]) -> UInt8[np.ndarray, "Y X 3"]:
        import mujoco

        if (self.name, camera, size) not in self._pictures:
            # Without anti-aliasing a small picture takes 9 ms instead of 22.
            self._env.model.vis.quality.offsamples = 4 if size == PICTURE else 0
            largest = self._env.model.vis.global_
            largest.offheight, largest.offwidth = max(size[0], largest.offheight), max(size[1], largest.offwidth)
            try:
                self._pictures[self.name, camera, size] = mujoco.Renderer(self._env.model, *size)
            except Exception as error:
                raise ValueError(
                    f"MuJoCo cannot draw with MUJOCO_GL={os.environ.get('MUJOCO_GL')} ({type(error).__name__}: "
                    f"{error}). Type: apt install libosmesa6, or on a GPU: export MUJOCO_GL=egl. A policy that sees "
                    "positions needs no pictures: env_runner.n_videos=0"
                ) from error
        renderer = self._pictures[self.name, camera, size]
        renderer.update_scene(self._env.data, camera=BEHIND_FRONT if camera == FRONT else camera)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX"):  # without them it takes a third of the time
            renderer.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        picture = renderer.render()
        return picture[::-1, ::-1].copy() if camera == FRONT else picture

    def _check_names(self) -> None:
        theirs = [self._env.model.camera(i).name for i in range(self._env.model.ncam)]
        cameras = [FRONT, *(name for name in theirs if name != BEHIND_FRONT)]
        numbers = ["hand", "objects", "goal", "task"]
        for name in self.obs_names:
            if name not in numbers + cameras:
                raise ValueError(
                    f"task.shape_meta.obs.{name}: Meta-World has no such observation. Expected some of "
                    f"{', '.join(numbers)}, or a camera: {', '.join(cameras)}"
                )


def expert_for(name: str) -> Any:
    """The benchmark's scripted expert of a task: its `get_action` maps the raw observation to an action (4,)."""
    from metaworld.policies import ENV_POLICY_MAP

    experts: Mapping[str, Any] = ENV_POLICY_MAP
    return experts[name]()


@cache
def _benchmark() -> Mapping[str, Any]:
    """Task -> class of its environment."""
    os.environ.setdefault("MUJOCO_GL", "egl" if Path("/dev/nvidiactl").exists() else "osmesa")
    logging.getLogger("OpenGL.acceleratesupport").setLevel(logging.ERROR)  # it works without
    if "torch" in sys.modules:  # OSMesa and Triton each bring an LLVM, and Triton crashes if it comes second
        with contextlib.suppress(ImportError):
            importlib.import_module("triton._C.libtriton")
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    except ImportError as error:
        raise ValueError(f"{INSTALL} ({error})") from None
    except RuntimeError as error:  # of MuJoCo, for an unknown MUJOCO_GL
        raise ValueError(f"{error}. Expected MUJOCO_GL=egl, osmesa or glfw") from None
    return ALL_V3_ENVIRONMENTS


def _make(name: str) -> Any:
    """As `metaworld.MT1` sets its environments up, but with the whole range of starts, drawn from the seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env: Any = _benchmark()[name]()
    env._partially_observable, env._freeze_rand_vec, env._set_task_called = False, False, True
    env.seeded_rand_vec = True
    env.model.camera(BEHIND_FRONT).pos[:] = FRONT_POSITION
    env.__dict__.pop("sawyer_observation_space", None)  # its bounds hid the goal
    return env

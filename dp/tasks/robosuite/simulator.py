"""A task of robosuite, in the Python where robosuite is installed.

`dp.tasks.serve` runs this file there. It needs robosuite, with its numpy and MuJoCo, and nothing of `dp`.
"""

from __future__ import annotations  # for Python 3.8

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl" if Path("/dev/nvidiactl").exists() else "osmesa")
logging.disable(logging.WARNING)  # robosuite recommends a file of settings at every start

NO_OPENGL = (
    f"MuJoCo cannot draw with MUJOCO_GL={os.environ['MUJOCO_GL']}. Type: apt install libosmesa6, or on a GPU: export "
    "MUJOCO_GL=egl. A policy that sees positions needs no pictures: export MUJOCO_GL=disable, env_runner.n_videos=0"
)

import numpy as np  # noqa: E402

try:
    import robosuite
    from robosuite.utils import transform_utils as rotations
except AttributeError as error:  # of PyOpenGL, which has not found the library
    raise RuntimeError(NO_OPENGL) from error

CONTROL_HZ = 20

CONTROLLER = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 150,
    "damping_ratio": 1,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_ratio_limits": [0, 10],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}
"""Operational space control of a gripper's pose, as in robomimic's data sets: an action of 1 is 5 cm, or 0.5 rad."""

PICTURE = (256, 256)
"""Size of the picture for people."""


class Simulator:
    """One task. See `dp.tasks.robosuite.env.RobosuiteEnv`.

    Args:
        env_name: robosuite's name of the task.
        n_arms: 1 or 2.
        absolute: whether an action is a pose, or else a movement.
        obs_names: what `observe` returns.
        sizes: camera -> (height, width) of its picture.
    """

    control_hz = float(CONTROL_HZ)

    def __init__(
        self, env_name: str, n_arms: int, absolute: bool, obs_names: Sequence[str], sizes: Mapping[str, Sequence[int]]
    ) -> None:
        self._n_arms, self._absolute = n_arms, absolute
        self._obs_names, self._sizes = tuple(obs_names), dict(sizes)
        self._env = robosuite.make(
            env_name,
            robots=["Panda"] * n_arms,
            controller_configs=_controller(absolute),
            control_freq=CONTROL_HZ,
            ignore_done=True,
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
        )
        self._renderers: dict[tuple[int, int], Any] = {}
        self._success = False
        self._check_names()

    def reset(self, seed: int) -> None:
        """Builds the episode of `seed` anew, because robosuite draws the sizes of some objects when it builds them."""
        np.random.seed(seed)  # robosuite 1.4 draws from numpy's global generator
        if hasattr(self._env, "rng"):  # 1.5 draws from its own, which its samplers hold, too
            self._env.rng.bit_generator.state = np.random.default_rng(seed).bit_generator.state
        self._renderers.clear()  # each draws one model
        self._env.reset()
        self._success = bool(self._env._check_success())

    def step(self, action: np.ndarray) -> None:
        action = np.asarray(action, np.float64)
        self._env.step(_with_axis_angles(action, self._n_arms) if self._absolute else action)
        self._success = bool(self._env._check_success())

    def state(self) -> dict[str, np.ndarray]:
        """Everything but pictures, by robomimic's names."""
        found = self._env._get_observations(force_update=True)
        found["object"] = found["object-state"]
        return {name: value.astype(np.float32) for name, value in found.items()}

    def observe(self) -> dict[str, np.ndarray]:
        state = self.state() if set(self._obs_names) - set(self._sizes) else {}
        return {
            name: self._picture(name[: -len("_image")], self._sizes[name]) if name in self._sizes else state[name]
            for name in self._obs_names
        }

    @property
    def reward(self) -> float:
        return float(self._success)

    @property
    def success(self) -> bool:
        return self._success

    @property
    def terminated(self) -> bool:
        return self._success

    def info(self) -> dict[str, float]:
        return {}

    def render(self) -> np.ndarray:
        return self._picture("agentview", PICTURE)

    def _picture(self, camera: str, size: Sequence[int]) -> np.ndarray:
        """What a camera sees, the right way up: the pixels that robomimic stores."""
        import mujoco

        height, width = size
        model, looks = self._env.sim.model._model, mujoco.MjvOption()
        looks.geomgroup[0] = 0  # shapes for collisions
        if (height, width) not in self._renderers:
            largest = model.vis.global_
            largest.offheight, largest.offwidth = max(height, largest.offheight), max(width, largest.offwidth)
            try:
                self._renderers[height, width] = mujoco.Renderer(model, height, width)
            except Exception as error:
                raise RuntimeError(f"{NO_OPENGL} ({type(error).__name__}: {error})") from error
        renderer = self._renderers[height, width]
        renderer.update_scene(self._env.sim.data._data, camera=camera, scene_option=looks)
        return renderer.render().copy()

    def _check_names(self) -> None:
        cameras = [f"{name}_image" for name in self._env.sim.model.camera_names]
        numbers = list(self.state())
        for name in self._obs_names:
            if name not in (cameras if name in self._sizes else numbers):
                raise ValueError(
                    f"task.shape_meta.obs.{name}: robosuite has no such observation. Expected some of "
                    f"{', '.join(sorted(numbers))}, or a picture (type: rgb): {', '.join(cameras)}"
                )


def _controller(absolute: bool) -> dict[str, Any]:
    """The configuration of the controller, in the form of the version of robosuite that is installed."""
    if not hasattr(robosuite, "load_composite_controller_config"):
        return {**CONTROLLER, "control_delta": not absolute}
    arm = {
        **CONTROLLER,
        "input_type": "absolute" if absolute else "delta",
        "input_ref_frame": "world",
        "gripper": {"type": "GRIP"},
    }
    return {"type": "BASIC", "body_parts": {"right": arm}}


def _with_axis_angles(action: np.ndarray, n_arms: int) -> np.ndarray:
    """(10 n,) -> (7 n,): rotations as the first two rows of a matrix (Zhou et al. 2019) -> axis times angle."""
    return np.concatenate([_pose(one) for one in np.split(action, n_arms)])


def _pose(action: np.ndarray) -> np.ndarray:
    first = action[3:6] / max(np.linalg.norm(action[3:6]), 1e-9)
    second = action[6:9] - (first @ action[6:9]) * first
    second /= max(np.linalg.norm(second), 1e-9)
    matrix = np.stack([first, second, np.cross(first, second)])
    return np.concatenate([action[:3], rotations.quat2axisangle(rotations.mat2quat(matrix)), action[9:]])

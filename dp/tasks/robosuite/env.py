"""A task of robosuite as an `Env`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from dp.tasks.elsewhere import Elsewhere

VARIABLE = "DP_ROBOSUITE_PYTHON"
"""The environment variable with the path of the Python that has robosuite."""

PACKAGES = "'robosuite==1.4.1' 'mujoco==3.2.7' 'numpy<2'"

SIMULATOR = Path(__file__).with_name("simulator.py")


class RobosuiteEnv(Elsewhere):
    """One task, in a process of the Python that has robosuite.

    The seed draws the sizes, places and turns of objects and the first pose of the arm, as robosuite does. The episode
    ends when the task is solved as robosuite defines it. Its reward is 1 then, and 0 before.

    Args:
        obs_names: what `observe` returns, by robomimic's names: "object", "robot0_eef_pos" (3,), metres,
            "robot0_eef_quat" (4,), x y z w, "robot0_gripper_qpos" (2,), and everything else that robosuite observes; a
            picture by the name of its camera, "agentview_image".
        env_name: robosuite's name of the task.
        n_arms: 1 or 2.
        absolute: whether an action is a pose, see `dp.tasks.robosuite.task.Robosuite`.
        sizes: picture -> (height, width).
        python: path of a Python that has robosuite; None: `VARIABLE`, or this one.

    Raises:
        ValueError: if there is no such Python, or it has no robosuite.
    """

    module_arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        obs_names: Sequence[str],
        env_name: str,
        n_arms: int,
        absolute: bool,
        sizes: Mapping[str, tuple[int, int]],
        python: str | None = None,
    ) -> None:
        self.env_name, self.absolute = env_name, absolute
        python = python or os.environ.get(VARIABLE) or None
        given = {"env_name": env_name, "n_arms": n_arms, "absolute": absolute, "sizes": dict(sizes)}
        try:
            super().__init__(obs_names, f"{SIMULATOR}:Simulator", python, {**given, "obs_names": None})
        except RuntimeError as error:
            if "No module named" not in str(error):
                raise
            missing = str(error).rpartition("named ")[2]
            raise ValueError(
                f"{python or 'this Python'} has no module {missing}. Type: PYTHON -m pip install {PACKAGES}, in a "
                f"Python of its own, and set task.env.python=PYTHON or the variable {VARIABLE}"
            ) from None

    def state(self) -> dict[str, np.ndarray]:
        """Everything that robosuite observes, but no pictures."""
        return self._ask("state")

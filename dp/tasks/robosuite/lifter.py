"""Lifts the cube: a scripted demonstrator of the task Lift."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from jaxtyping import Float

from dp.tasks.demonstration import Demonstration
from dp.tasks.recorder import Recorder
from dp.tasks.robosuite.env import RobosuiteEnv

STEP, TURN = 0.05, 0.5
"""Movement and turn of an action of 1: metres, radians."""

ABOVE = 0.08
"""Height above the cube from which the gripper goes down, metres."""

ARRIVED, ALIGNED = 0.01, 0.1
"""Errors that count as none: metres, radians."""

CLOSING = 6
"""Control steps in which the gripper closes."""

OPEN, CLOSED = -1.0, 1.0


@dataclass
class Lifter:
    """Moves above the cube, turns the gripper to its faces, goes down, grasps, and lifts.

    Args:
        make_env: makes the environment.
        noise: standard deviation of what is added to movements and turns when they are executed (DART, Laskey et al.
            2017); the recorded action is what was meant.
        max_steps: after which an episode has failed.
    """

    make_env: Callable[[], RobosuiteEnv]
    noise: Annotated[float, Interval(ge=0, le=1)] = 0.1
    max_steps: Annotated[int, Interval(ge=1, le=400)] = 200
    _env: RobosuiteEnv | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_env": None}  # each process has its own environment

    def __call__(self, seed: int) -> Demonstration | None:
        return self.finish(seed, np.zeros((0, 7), np.float32))

    def finish(self, seed: int, actions: Float[np.ndarray, "T 7"]) -> Demonstration | None:
        """Solves the episode of `seed` from where `actions` lead; None if it does not."""
        env = self._env = self._env or self.make_env()
        if not isinstance(env, RobosuiteEnv) or (env.env_name, env.absolute) != ("Lift", False):
            raise ValueError(
                "collector=robosuite lifts the cube of Lift by movements: set task=robosuite task.name=Lift "
                "task.shape_meta.action.shape=[7]"
            )
        recorder, rng, hand = Recorder(env, seed), np.random.default_rng(seed), _Hand()
        for action in actions:
            env.step(action)
        for _ in range(self.max_steps):
            noise = self.noise * np.append(rng.standard_normal(6), 0)
            if recorder.step(hand.action(env.state()), noise):
                return recorder.demonstration()
        return None


class _Hand:
    """Decides on the next action of one episode."""

    def __init__(self) -> None:
        self._n_closing = 0

    def action(self, state: dict[str, np.ndarray]) -> Float[np.ndarray, " 7"]:
        cube, hand = state["cube_pos"], state["robot0_eef_pos"]
        turn = _to_face(_yaw(state["cube_quat"]) - _yaw(state["robot0_eef_quat"]))
        aside = float(np.hypot(*(cube - hand)[:2]))
        if aside > 2 * ARRIVED or hand[2] - cube[2] > 2 * ABOVE:
            self._n_closing = 0  # it lost the cube
        if self._n_closing == 0 and (aside > ARRIVED or abs(turn) > ALIGNED):
            return _towards(cube + np.array([0, 0, ABOVE]) - hand, turn, OPEN)
        if self._n_closing == 0 and hand[2] - cube[2] > ARRIVED:
            return _towards(cube - hand, turn, OPEN)
        self._n_closing += 1
        return _towards(np.array([0.0, 0.0, STEP if self._n_closing > CLOSING else 0.0]), 0.0, CLOSED)


def _towards(way: Float[np.ndarray, " 3"], turn: float, gripper: float) -> Float[np.ndarray, " 7"]:
    """The action that moves along `way` as far as a control step allows, at the same time as it turns."""
    movement = way / STEP
    return np.array([*(movement / max(1.0, np.abs(movement).max())), 0, 0, np.clip(turn / TURN, -1, 1), gripper])


def _yaw(quaternion: Float[np.ndarray, " 4"]) -> float:
    """The turn about the vertical of a quaternion x y z w, radians."""
    x, y, z, w = quaternion
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


def _to_face(turn: float) -> float:
    """The smallest of the turns by `turn` and quarters more: a cube looks alike after each."""
    return (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4

"""The benchmark's scripted experts as demonstrators."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from jaxtyping import Float

from dp.tasks.demonstration import Demonstration
from dp.tasks.metaworld.env import MetaWorldEnv, expert_for
from dp.tasks.recorder import Recorder

GRIPPER, OPENED = 3, 0.9
"""Index in the benchmark's observation of how far the gripper is open, and what counts as open. Episodes begin at 1."""

OPEN = np.array([0, 0, 0, -1], np.float32)
"""The action that stays in place and opens the gripper."""


@dataclass
class Scripted:
    """Solves a task as its expert in the benchmark does, with noise.

    Args:
        make_env: makes the environment.
        noise: standard deviation of what is added to actions when they are executed (DART, Laskey et al. 2017); the
            recorded action is what was meant.
        n_frames_past_success: steps after the task is solved.
        max_steps: after which an episode has failed.
    """

    make_env: Callable[[], MetaWorldEnv]
    noise: Annotated[float, Interval(ge=0, le=1)] = 0.1
    n_frames_past_success: Annotated[int, Interval(ge=0, le=400)] = 0
    max_steps: Annotated[int, Interval(ge=1, le=500)] = 300
    _env: MetaWorldEnv | None = field(default=None, init=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_env": None}  # each process has its own environment

    def __call__(self, seed: int) -> Demonstration | None:
        return self._solve(seed, np.zeros((0, 4), np.float32))

    def finish(self, seed: int, actions: Float[np.ndarray, "T 4"]) -> Demonstration | None:
        """Solves the episode of `seed` from where `actions` lead; None if it does not.

        It opens the gripper first, because the benchmark's experts rely on the open one with which episodes begin.
        """
        return self._solve(seed, actions)

    def _solve(self, seed: int, before: Float[np.ndarray, "T 4"]) -> Demonstration | None:
        env = self._env = self._env or self.make_env()
        if not isinstance(env, MetaWorldEnv):
            raise ValueError(
                f"collector=scripted demonstrates Meta-World: set task=metaworld, not {type(env).__name__}"
            )
        recorder, rng = Recorder(env, seed), np.random.default_rng(seed)
        for action in before:
            env.step(action)
        expert, past, opening = expert_for(env.name), 0, len(before) > 0
        for _ in range(self.max_steps):
            if env.over:
                return None
            opening = opening and env.raw[GRIPPER] < OPENED
            meant = OPEN if opening else _advice(expert, env)
            solved = recorder.step(meant, self.noise * rng.standard_normal(4))
            past = past + 1 if solved or past else 0
            if past > self.n_frames_past_success:
                return recorder.demonstration()
        return None


def _advice(expert: Any, env: MetaWorldEnv) -> Float[np.ndarray, "4"]:
    with warnings.catch_warnings():  # that its actions will be clipped
        warnings.simplefilter("ignore")
        return np.clip(expert.get_action(env.raw), -1, 1)

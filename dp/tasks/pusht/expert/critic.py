"""Tries plans in the exact physics and values the block's pose with the planner's table."""

import numpy as np
from jaxtyping import Float

from dp.tasks.pusht.expert.planner import Planner
from dp.tasks.pusht.expert.simulator import Simulator, pose_error, private_api_agrees
from dp.tasks.pusht.expert.value import ENOUGH, cost_to_go
from dp.types import Situation

SOLVED = 0.0
"""Cost of a plan that solves the task, control steps. Any other leaves more than `ENOUGH` pixels, at `SLOPE` each."""


class SimulatorCritic:
    """Control steps that remain after a plan, by `CostToGo`: the least over its steps from Ta on.

    Privileged: it starts from the true state and velocity, which `PushTEnv.snapshot` gives, with the exact physics.

    Args:
        n_action_steps: Ta, the actions that are executed before the next decision. What follows them is tried, too.
    """

    def __init__(self, n_action_steps: int) -> None:
        self.n_action_steps = n_action_steps
        self._value, self._agrees = cost_to_go(Planner.push_speed), private_api_agrees()

    def costs(self, plans: Float[np.ndarray, "n T 2"], situation: Situation) -> Float[np.ndarray, " n"]:
        if "simulator" not in situation.memory:
            situation.memory["simulator"] = Simulator(self._agrees)
        simulator = situation.memory["simulator"]
        assert situation.state is not None
        state, velocity = situation.state["state"], situation.state["velocity"]
        _, poses = simulator.rollout(state, velocity, plans.astype(np.float64))
        remaining = self._value(poses[:, min(self.n_action_steps, plans.shape[1]) - 1 :]).min(1)
        solved = (pose_error(poses) < ENOUGH).any(1)
        return np.asarray(np.where(solved, SOLVED, remaining))

"""The planner goes on where a policy got stuck."""

import numpy as np
from jaxtyping import Float

from dp.tasks.pusht.demonstration import Demonstration
from dp.tasks.pusht.env import PushTEnv
from dp.tasks.pusht.expert.planner import Planner
from dp.tasks.pusht.state import initial_state_for


def finish(seed: int, actions: Float[np.ndarray, "T 2"]) -> Demonstration | None:
    """The planner's solution from where `actions` lead, at rest there; None if it finds none."""
    env = PushTEnv([])
    env.reset(seed)
    for action in actions:
        env.step(action)
    return Planner().solve(seed, initial_state_for(env.state))

"""A demonstration: one episode of the environment that policies are tested in, frame by frame."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.env import PushTEnv

FRAMES: dict[str, tuple[str, tuple[int, ...]]] = {
    "state": ("<f4", (5,)),
    "action": ("<f4", (2,)),
    "keypoint": ("<f4", (9, 2)),
    "n_contacts": ("<f4", (1,)),
    "noise": ("<f4", (2,)),
}
"""Arrays with one row per frame: name -> (dtype, shape of one row)."""

FACTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "seed": ("<i8", ()),
    "initial_state": ("<f8", (5,)),
    "source": ("<U16", ()),
    "success": ("|b1", ()),
    "final_coverage": ("<f8", ()),
}
"""Arrays with one row per episode: name -> (dtype, shape of one row)."""


@dataclass(frozen=True)
class Demonstration:
    """One episode, as the data set stores it: frame t is what was seen before `action[t]` was chosen.

    seed: what the episode follows from. initial_state: what the environment was reset to, see
    `pusht.initial_state_for`. action: pixels. noise: pixels, was added to the action before it was executed; the action
    is what the demonstrator meant (DART, Laskey et al. 2017). n_contacts: between agent and block during the last
    control step. success: whether coverage ever exceeded 0.95. final_coverage: after the last action, 0..1.
    """

    seed: int
    initial_state: Float[np.ndarray, " 5"]
    state: Float[np.ndarray, "T 5"]
    action: Float[np.ndarray, "T 2"]
    noise: Float[np.ndarray, "T 2"]
    n_contacts: Float[np.ndarray, "T 1"]
    success: bool
    final_coverage: float

    def __len__(self) -> int:
        return len(self.action)

    def frames(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in FRAMES}

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in FACTS if name != "source"}

    def final(self) -> dict[str, float]:
        return {"coverage": self.final_coverage}

    @property
    def keypoint(self) -> Float[np.ndarray, "T 9 2"]:
        return pusht.low_dim_obs(self.state, ["keypoint"])["keypoint"]


class Recorder:
    """Steps an environment from `initial_state`, by default that of `seed`, and keeps what happens.

    `env` is what to plan with.
    """

    def __init__(
        self, seed: int, env: PushTEnv | None = None, initial_state: Float[np.ndarray, " 5"] | None = None
    ) -> None:
        self._initial_state = pusht.initial_state(seed) if initial_state is None else initial_state
        self.env = env or PushTEnv([])
        self.env.reset_to(self._initial_state)
        self._seed, self._success = seed, False
        self._states: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._noises: list[np.ndarray] = []
        self._n_contacts: list[int] = []

    def __len__(self) -> int:
        return len(self._actions)

    def step(self, action: Float[np.ndarray, " 2"], noise: Float[np.ndarray, " 2"] | None = None) -> bool:
        """Executes `action + noise`, both rounded to float32 as they are stored. Returns whether the task is solved."""
        action32 = np.asarray(action, np.float32)
        noise32 = np.zeros(2, np.float32) if noise is None else np.asarray(noise, np.float32)
        self._states.append(self.env.state.astype(np.float32))
        self._n_contacts.append(self.env.n_contacts)
        self._actions.append(action32)
        self._noises.append(noise32)
        self.env.step(action32 + noise32)
        self._success |= self.env.success
        return self.env.success

    def demonstration(self) -> Demonstration:
        """The recording so far. Raises ValueError before the first step."""
        if not self._actions:
            raise ValueError("an episode without a step is no demonstration")
        return Demonstration(
            seed=self._seed,
            initial_state=self._initial_state,
            state=np.stack(self._states),
            action=np.stack(self._actions),
            noise=np.stack(self._noises),
            n_contacts=np.array(self._n_contacts, np.float32)[:, None],
            success=self._success,
            final_coverage=self.env.coverage,
        )


def replay(demonstration: Demonstration, env: PushTEnv | None = None) -> Demonstration:
    """Runs the executed actions once more from the same initial state, and records that."""
    recorder = Recorder(demonstration.seed, env, demonstration.initial_state)
    for action, noise in zip(demonstration.action, demonstration.noise, strict=True):
        recorder.step(action, noise)
    return recorder.demonstration()

"""An episode as a policy sees it: To observations in, Ta actions out."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from dp.tasks.env import Env

KICK_EVERY = 50
"""Control steps from one disturbance to the next."""


@dataclass
class Chunk:
    """Outcome of a chunk of actions.

    obs: name -> (To, ...), the last observations, raw; empty when the episode has ended.
    rewards: one per step taken. info: the environment's named quantities after the last step. success: whether
    the task was solved after any of the steps; None if the environment does not say. ended: whether the episode is
    over. control_hz: control steps per second. frames: pictures for people, if wanted. state: the environment's true
    state, if wanted.
    """

    obs: dict[str, np.ndarray]
    rewards: list[float] = field(default_factory=list)
    info: dict[str, float] = field(default_factory=dict)
    success: bool | None = False
    ended: bool = False
    control_hz: float = 0.0
    frames: list[np.ndarray] = field(default_factory=list)
    state: dict[str, np.ndarray] | None = None


class Episode:
    """Runs action chunks in an environment. It keeps the last To observations and draws no others.

    Args:
        env: an environment, reset by this class.
        n_obs_steps: To.
        obs_names: the observations to keep; None: all.
        with_state: whether chunks bring the environment's true state (`snapshot`).
        kick: strength of a disturbance every `KICK_EVERY` steps; 0: none.

    Raises:
        ValueError: for a kick without an environment that knows how to (`disturb`).
    """

    def __init__(
        self,
        env: Env,
        n_obs_steps: int,
        obs_names: Sequence[str] | None = None,
        with_state: bool = False,
        kick: float = 0.0,
    ) -> None:
        if kick and not hasattr(env, "disturb"):
            raise ValueError(f"kick={kick}: the environment has no method disturb(rng, strength). Expected kick=0")
        self.env, self._obs_names, self._with_state, self._kick = env, obs_names, with_state, kick
        self._history: deque[dict[str, np.ndarray]] = deque(maxlen=n_obs_steps)

    def reset(self, seed: int, max_steps: int, record: bool) -> Chunk:
        """Begins the episode of `seed`, which ends after `max_steps` control steps at the latest.

        The first observation stands for those before it, as in the data's padding.
        """
        self._seed, self._steps, self._max_steps, self._record = seed, 0, max_steps, record
        with self._named("reset(seed)"):
            self.env.reset(seed)
        self._history.clear()
        for _ in range(self._history.maxlen or 0):
            self._history.append(self._look())
        return Chunk(self._stacked(), control_hz=self.env.control_hz, frames=self._frames(), state=self._state())

    def step(self, actions: Float[np.ndarray, "Ta Da"]) -> Chunk:
        """Executes `actions` until they, or the episode, end.

        Raises ValueError, naming the seed, for a fault of the environment.
        """
        chunk, terminated = Chunk({}), False
        planned = actions[: self._max_steps - self._steps]
        for number, action in enumerate(planned, start=1):
            with self._named("step(action)"):
                self.env.step(action)
            self._steps += 1
            if self._kick and self._steps % KICK_EVERY == 0:
                with self._named("disturb(rng, strength)"):
                    self.env.disturb(np.random.default_rng([self._seed, self._steps]), self._kick)  # type: ignore[attr-defined]
            terminated = self._judge(chunk)
            chunk.frames += self._frames()
            if terminated:
                break
            if number > len(planned) - (self._history.maxlen or 0):
                self._history.append(self._look())
        with self._named("info()"):
            chunk.info = self.env.info()
        chunk.ended = terminated or self._steps == self._max_steps
        if not chunk.ended:
            chunk.obs, chunk.state = self._stacked(), self._state()
        return chunk

    def _judge(self, chunk: Chunk) -> bool:
        """Adds reward and success of the present state. Returns whether the episode is over."""
        with self._named("reward, success or terminated"):
            reward, success, terminated = float(self.env.reward), self.env.success, self.env.terminated
        if not math.isfinite(reward):
            raise ValueError(f"the environment's reward is {reward} in step {self._steps} of the episode {self._where}")
        chunk.rewards.append(reward)
        chunk.success = None if success is None else bool(chunk.success) or success
        return terminated

    def _look(self) -> dict[str, np.ndarray]:
        with self._named("observe()"):
            seen = self.env.observe()
            obs = {name: seen[name] for name in (seen if self._obs_names is None else self._obs_names)}
        for name, value in obs.items():
            before = self._history[-1][name] if self._history else value
            if value.shape != before.shape:
                raise ValueError(
                    f"the environment's {name} changes its shape from {before.shape} to {value.shape} in the episode "
                    f"{self._where}"
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"the environment's {name} is not finite in the episode {self._where}")
        return obs

    @property
    def _where(self) -> str:
        return f"of seed {self._seed}"

    @contextmanager
    def _named(self, method: str) -> Iterator[None]:
        """Turns what the environment raises in `method` into a ValueError that says so."""
        try:
            yield
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"the environment fails in {method} in the episode {self._where}: {reason}") from error

    def _stacked(self) -> dict[str, np.ndarray]:
        return {name: np.stack([obs[name] for obs in self._history]) for name in self._history[0]}

    def _state(self) -> dict[str, np.ndarray] | None:
        return self.env.snapshot() if self._with_state else None  # type: ignore[attr-defined]

    def _frames(self) -> list[np.ndarray]:
        if not self._record:
            return []
        with self._named("render()"):
            return [self.env.render()]

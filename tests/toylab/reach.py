"""Move an arm of seven joints until its tip is at the goal. Two cameras of different sizes look on."""

import numpy as np

from dp.tasks import Protocol, Task
from dp.tasks.recorder import RecordedEpisode, Recorder


class Reach(Task):
    score = "mean over episodes of the best closeness"
    success = "share of episodes in which the tip touches the goal"
    reset = "joints from numpy.random.default_rng(seed)"
    packages = ("numpy",)
    default_protocols = (Protocol("touch-4", 4, 500, 12), Protocol("touch-6", 6, 500, 12))
    demonstration_seeds = range(400)

    @property
    def expert(self):
        return finish


class ReachEnv:
    """Success is momentary, and does not end the episode: only leaving the workspace does."""

    control_hz = 20.0

    def __init__(self, touch: float = 0.4) -> None:
        self.touch = touch
        self.joints, self.goal = np.zeros(7), np.zeros(7)

    def reset(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.joints, self.goal = rng.uniform(-1, 1, 7), rng.uniform(-1, 1, 7)

    def observe(self) -> dict[str, np.ndarray]:
        return {
            "front": self._picture(48, 64),
            "wrist": self._picture(40, 32),
            "joints": self.joints.astype(np.float32),
            "goal": self.goal.astype(np.float32),
        }

    def step(self, action: np.ndarray) -> None:
        assert action.shape == (7,)
        self.joints = self.joints + np.clip(action, -0.5, 0.5)

    @property
    def distance(self) -> float:
        return float(np.abs(self.joints - self.goal).mean())

    @property
    def reward(self) -> float:
        return -self.distance

    @property
    def success(self) -> bool:
        return self.distance < self.touch

    @property
    def terminated(self) -> bool:
        return bool(np.abs(self.joints).max() > 5)

    def info(self) -> dict[str, float]:
        return {"distance": self.distance, "reach": float(np.abs(self.joints).max())}

    def render(self) -> np.ndarray:
        return self._picture(63, 65)  # odd, as it comes

    def _picture(self, height: int, width: int) -> np.ndarray:
        shades = np.clip(128 + 40 * np.r_[self.joints, self.goal], 0, 255).astype(np.uint8)
        columns = np.repeat(shades, -(-width // len(shades)))[:width]
        return np.broadcast_to(columns[None, :, None], (height, width, 3)).copy()


class _Going(ReachEnv):
    """An episode that begins where `actions` lead."""

    def __init__(self, actions: np.ndarray) -> None:
        super().__init__()
        self.actions = actions

    def reset(self, seed: int) -> None:
        super().reset(seed)
        for action in self.actions:
            self.step(action)


def finish(seed: int, actions: np.ndarray) -> RecordedEpisode | None:
    """Goes straight to the goal from where `actions` lead."""
    recorder = Recorder(_Going(actions), seed)
    for _ in range(12):
        if recorder.step(recorder.env.goal - recorder.env.joints):
            return recorder.demonstration()
    return None

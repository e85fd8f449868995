"""An expert that solves PushT by planning with the simulator: CEM-MPC."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dp.collectors.demonstration import Demonstration, Recorder
from dp.collectors.simulator import (
    AREA,
    CENTROID,
    PERIMETER,
    Simulator,
    clearance,
    pose_error,
    private_api_agrees,
    rotate,
)

NOISE_CORRELATION = 0.8
"""Of the execution noise from one control step to the next: about five steps push the agent the same way."""

RADII = 50.0, 110.0
"""Of the arcs around the block that are tried, pixels."""


@dataclass(frozen=True)
class Planner:
    """Model predictive control by the cross-entropy method (Rubinstein 1999; Chua et al. 2018, section 5).

    Every few steps the next `horizon` targets of the agent are chosen anew from the environment's real state: knots of
    a Catmull-Rom spline, at first arcs around the block and what is left of the last plan, then Gaussians fitted to
    the best. A control step is 0.1 s. The same demonstration for the same seed, in whichever process.

    Args:
        speed: limit of the target's movement, pixels a control step.
        target_coverage: what the planner aims for, 0..1; the task counts as solved above 0.95.
        n_frames_past_success: control steps in a row with the task solved before the demonstration ends.
        margin: closeness to the block that costs while the agent does not push, pixels; 0: none does.
        smoothness: cost of the targets' second differences, pixels of pose error for each pixel.
        noise: standard deviation of what is added to actions when they are executed, pixels (DART, Laskey et al.
            2017); the recorded action is what was meant.
        hysteresis: the last plan is kept unless a new one is better by so much, pixels of pose error.
        execute_steps: control steps between plans.
        horizon: control steps of a plan.
        n_knots: of its spline.
        n_samples: plans tried in each iteration.
        n_elites: of them the Gaussians are fitted to.
        n_iterations: of the cross-entropy method for each plan.
        max_steps: control steps after which an episode has failed.
        n_attempts: episodes from the same initial state before the seed is given up.
    """

    speed: float = 8.0
    target_coverage: float = 0.97
    n_frames_past_success: int = 8
    margin: float = 10.0
    smoothness: float = 0.03
    noise: float = 0.0
    hysteresis: float = 0.0
    execute_steps: int = 8
    horizon: int = 50
    n_knots: int = 6
    n_samples: int = 64
    n_elites: int = 8
    n_iterations: int = 4
    max_steps: int = 300
    n_attempts: int = 4

    def __post_init__(self) -> None:
        private_api_agrees()  # warns now

    def __call__(self, seed: int) -> Demonstration | None:
        for attempt in range(self.n_attempts):
            demonstration = self._attempt(seed, np.random.default_rng([seed, attempt]))
            if demonstration.final_coverage > 0.95:  # an end at which the task is unsolved again teaches nothing
                return demonstration
        return None

    def _attempt(self, seed: int, rng: np.random.Generator) -> Demonstration:
        recorder, simulator = Recorder(seed), Simulator(private_api_agrees())
        last = np.tile(recorder.env.state[:2], (2, 1))  # the last two targets
        plan = np.tile(last[-1], (self.horizon, 1))
        noise, n_solved = np.zeros(2), 0
        while n_solved <= self.n_frames_past_success and len(recorder) < self.max_steps:
            if len(recorder) % self.execute_steps == 0:
                plan = self._plan(rng, simulator, recorder.env.state, recorder.env.velocity, last, plan)
            action, plan = plan[0], np.concatenate([plan[1:], plan[-1:]])
            fresh = rng.normal(scale=self.noise, size=2)
            noise = NOISE_CORRELATION * noise + np.sqrt(1 - NOISE_CORRELATION**2) * fresh
            n_solved = n_solved + 1 if recorder.step(action, noise) else 0
            last = np.stack([last[1], action])
        return recorder.demonstration()

    def _plan(
        self,
        rng: np.random.Generator,
        simulator: Simulator,
        state: Float[np.ndarray, " 5"],
        velocity: Float[np.ndarray, " 5"],
        last: Float[np.ndarray, "2 2"],
        plan: Float[np.ndarray, "T 2"],
    ) -> Float[np.ndarray, "T 2"]:
        """The cheapest plan found, `plan` (what is left of the last one) among them."""
        mean = plan[np.linspace(0, self.horizon - 1, self.n_knots + 1).astype(int)[1:]]
        std = np.full(mean.shape, 45.0)
        best, best_cost = plan, np.inf
        for iteration in range(self.n_iterations):
            knots = mean + std * rng.normal(size=(self.n_samples, *mean.shape))
            if iteration == 0:
                n_arcs = int(0.4 * self.n_samples)
                knots[-n_arcs:] = self._arcs(rng, state[2:], n_arcs)
            knots[0], knots[1] = mean, last[-1]  # the second stands still
            targets = self._targets(knots, last)
            if iteration == 0:
                targets[0] = plan
            cost = self._cost(targets, last, *simulator.rollout(state, velocity, targets))
            if iteration == 0:
                cost[0] -= self.hysteresis
            elites = np.argsort(cost, kind="stable")[: self.n_elites]
            if cost[elites[0]] < best_cost:
                best, best_cost = targets[elites[0]], cost[elites[0]]
            mean, std = knots[elites].mean(0), knots[elites].std(0) + 4
        return best

    def _arcs(self, rng: np.random.Generator, pose: Float[np.ndarray, " 3"], n: int) -> Float[np.ndarray, "n K 2"]:
        """Knots on the way around the block and then towards its centroid."""
        progress = np.linspace(0, 1, self.n_knots)
        angle = rng.uniform(0, 2 * np.pi, (n, 1)) + rng.uniform(-3.5, 3.5, (n, 1)) * progress
        radius = rng.uniform(*RADII, (n, 1)) * np.where(progress < 0.5, 1, rng.uniform(0.1, 1, (n, self.n_knots)))
        centroid = pose[:2] + rotate(CENTROID, pose[2])
        return centroid + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)

    def _targets(self, knots: Float[np.ndarray, "N K 2"], last: Float[np.ndarray, "2 2"]) -> Float[np.ndarray, "N T 2"]:
        """A target for each control step on the spline through the knots, or as far towards it as `speed` allows."""
        n_samples, n_knots, _ = knots.shape
        time = np.arange(1, self.horizon + 1) / self.horizon * n_knots
        i = np.minimum(time.astype(int), n_knots - 1)
        t = (time - i)[:, None]
        start = np.tile(last[-1], (n_samples, 1, 1))
        before = start - (last[1] - last[0]) * self.horizon / n_knots
        p = np.concatenate([before, start, np.clip(knots, 10, 502), np.clip(knots[:, -1:], 10, 502)], axis=1)
        a, b, c, d = p[:, i], p[:, i + 1], p[:, i + 2], p[:, i + 3]
        spline = b + t / 2 * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))  # Catmull & Rom 1974
        targets, target = np.empty_like(spline), last[-1]
        for step in range(self.horizon):
            way = np.clip(spline[:, step], 0, 512) - target
            target = target + way * np.minimum(1, self.speed / np.maximum(np.hypot(*way.T), 1e-9))[:, None]
            targets[:, step] = target
        return targets.astype(np.float32).astype(np.float64)  # as they are executed

    def _cost(
        self,
        targets: Float[np.ndarray, "N T 2"],
        last: Float[np.ndarray, "2 2"],
        positions: Float[np.ndarray, "N T 2"],
        poses: Float[np.ndarray, "N T 3"],
    ) -> Float[np.ndarray, " N"]:
        """Pixels of pose error, and what is as bad: time, distance and closeness to the block, jerks."""
        error = pose_error(poses)
        enough = (1 - self.target_coverage) * 2 * AREA / PERIMETER
        solved = error < enough
        error = np.maximum(error, enough)
        error = np.minimum(error, 30) + 0.3 * np.maximum(error - 30, 0)  # turning the T round may cost a detour
        time = np.where(solved.any(1), solved.argmax(1), self.horizon)
        gap = clearance(positions, poses)
        walking = np.abs(np.diff(poses, axis=1)).max(-1) < 0.01
        close = np.maximum(self.margin - gap[:, 1:], 0) * walking / max(self.margin, 1.0)
        path = np.concatenate([np.broadcast_to(last, (len(targets), 2, 2)), targets], axis=1)
        jerk = np.sqrt(np.square(np.diff(path, n=2, axis=1)).sum((1, 2)))
        return (
            error[:, -1]
            + error.min(1)
            + 0.1 * error.mean(1)
            + 0.25 * time  # with less, it stalls just short of the goal
            + 0.03 * np.maximum(gap[:, -1] - 10, 0)
            + 0.05 * np.maximum(gap - 30, 0).mean(1)  # not to put off the way back
            + 0.05 * close.sum(1)
            + self.smoothness * jerk
        )

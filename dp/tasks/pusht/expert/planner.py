"""An expert that solves PushT with few pushes, like those of people. It chooses the push after which least is left to
do."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import numpy as np
from annotated_types import Interval
from jaxtyping import Bool, Float

from dp.tasks.pusht.demonstration import Demonstration, Recorder
from dp.tasks.pusht.expert.pushes import PUSHES, STANDOFF, Push, targets, walks
from dp.tasks.pusht.expert.simulator import CORNERS, Simulator, pose_error, private_api_agrees, rotate
from dp.tasks.pusht.expert.value import ENOUGH, SETTLING, cost_to_go, outcomes, without_a_push

NOISE_CORRELATION = 0.8
"""Correlation of the execution noise between control steps. About five steps push the agent the same way."""

NEAR = 30.0
"""Pose error, in pixels, below which a push is tuned in the simulator, because it may be the last."""

UNTUNED = 20.0
"""Extra cost, in control steps, of a push that is not tuned and ends a little elsewhere."""

N_ELITES = 8
"""Number of best pushes from which the next iteration of the tuning draws."""

TABLE = 512.0
"""Width and height of the table, in pixels."""

HELD = 10.0
"""Distance, in pixels, between agent and contact within which a push starts without a walk. People steer the block with
one such long push instead of three."""

NEVER = 1e4
"""Cost, in control steps, of a push that is never chosen."""

TryOut = Callable[[Float[np.ndarray, "N T 2"]], tuple[Float[np.ndarray, "N T 2"], Float[np.ndarray, "N T 3"]]]
"""Signature of `Simulator.rollout` from the present state."""


@dataclass(frozen=True)
class Planner:
    """Chooses among the pushes of `pushes.PUSHES`, each with a length, the one after which least is left to do.

    A value table (`value.CostToGo`) knows what is left; the last pushes are tuned in the simulator by the cross-entropy
    method (Rubinstein 1999). Then the agent walks to the push, makes it to its end, and chooses again. A control step
    is 0.1 s. The same seed gives the same demonstration in every process.

    Args:
        walk_speed: limit of the target's movement on the way to a push, pixels per control step.
        push_speed: the same for a push.
        acceleration: limit, pixels per control step squared.
        margin: distance kept from the block on the way, pixels.
        n_frames_past_success: control steps at a halt at the end.
        noise: standard deviation of what is added to actions when they are executed, pixels (DART, Laskey et al.
            2017); the recorded action is what was meant.
        n_samples: pushes tried in each iteration of the tuning; four times as many in the first.
        n_iterations: of the tuning.
        max_steps: control steps after which an episode has failed.
        n_attempts: episodes from the same initial state before the seed is given up; from the second on it chooses
            among the best at random.
    """

    walk_speed: Annotated[float, Interval(ge=1, le=TABLE)] = 24.0
    push_speed: Annotated[float, Interval(ge=1, le=TABLE)] = 6.0
    acceleration: Annotated[float, Interval(ge=0.5, le=TABLE)] = 8.0
    margin: Annotated[float, Interval(ge=0, le=TABLE)] = 80.0
    n_frames_past_success: Annotated[int, Interval(ge=0, le=10_000)] = 0
    noise: Annotated[float, Interval(ge=0, le=TABLE)] = 0.0
    n_samples: Annotated[int, Interval(ge=N_ELITES, le=10_000)] = 64
    n_iterations: Annotated[int, Interval(ge=1, le=1000)] = 6
    max_steps: Annotated[int, Interval(ge=1, le=10_000)] = 300
    n_attempts: Annotated[int, Interval(ge=1, le=1000)] = 4

    def __post_init__(self) -> None:
        private_api_agrees()  # warns now

    def __call__(self, seed: int) -> Demonstration | None:
        return self.solve(seed)

    def solve(self, seed: int, initial_state: Float[np.ndarray, " 5"] | None = None) -> Demonstration | None:
        """Solves the task from `initial_state`, by default that of `seed`; None if no attempt does."""
        for attempt in range(self.n_attempts):
            demonstration = self._attempt(seed, attempt, initial_state)
            if demonstration.final_coverage > 0.95:  # an end at which the task is unsolved again teaches nothing
                return demonstration
        return None

    def _attempt(self, seed: int, attempt: int, initial_state: Float[np.ndarray, " 5"] | None = None) -> Demonstration:
        rng, recorder = np.random.default_rng([seed, attempt]), Recorder(seed, initial_state=initial_state)
        simulator = Simulator(private_api_agrees())
        target, noise = recorder.env.state[:2], np.zeros(2)
        while len(recorder) < self.max_steps and not recorder.env.success:
            try_out = partial(simulator.rollout, recorder.env.state, recorder.env.velocity)
            plan = self._plan(rng, try_out, recorder.env.state[2:], target, 8.0 * attempt)
            for target in plan[: self.max_steps - len(recorder)]:
                # First-order autoregressive noise whose standard deviation is `self.noise` at every step.
                fresh = rng.normal(scale=self.noise, size=2)
                noise = NOISE_CORRELATION * noise + np.sqrt(1 - NOISE_CORRELATION**2) * fresh
                recorder.step(target, noise)
        if recorder.env.success:
            for _ in range(self.n_frames_past_success):
                recorder.step(target)
        return recorder.demonstration()

    def _plan(
        self,
        rng: np.random.Generator,
        try_out: TryOut,
        pose: Float[np.ndarray, " 3"],
        agent: Float[np.ndarray, " 2"],
        temperature: float,
    ) -> Float[np.ndarray, "T 2"]:
        """Targets of the next push and the way to it, from the last target, `agent`, to a block in `pose`."""
        pushes = outcomes(self.push_speed)
        ways = np.array([self._way_steps(pose, agent, push) for push in PUSHES])
        # Cost of every push: the way to it, its steps, and the steps left after it.
        after = pose + np.concatenate([rotate(pushes.moved[:, :2], pose[2]), pushes.moved[:, 2:]], axis=1)
        cost = ways[pushes.push] + pushes.steps + cost_to_go(self.push_speed)(after)
        # Rule out pushes that move the block near the edge. Noise makes later attempts differ.
        corners = rotate(CORNERS, after[:, 2, None]) + after[:, None, :2]
        cost += NEVER * ~_inside(corners, 12.0) + rng.normal(scale=temperature, size=len(cost))
        best = cost.argmin()
        if pose_error(pose) < NEAR:
            tuned_cost, tuned = self._tuned(rng, try_out, pose, agent)
            if tuned_cost < cost[best] + UNTUNED:
                return tuned
        return self._targets(pose, agent, PUSHES[pushes.push[best]], pushes.length[best])

    def _tuned(
        self,
        rng: np.random.Generator,
        try_out: TryOut,
        pose: Float[np.ndarray, " 3"],
        agent: Float[np.ndarray, " 2"],
    ) -> tuple[float, Float[np.ndarray, "_ 2"]]:
        """Returns the cost and the targets of the best push found near those of `PUSHES`."""
        n = 4 * self.n_samples
        number, beside = rng.integers(len(PUSHES), size=n), rng.normal(scale=np.array([[6.0], [0.15]]), size=(2, n))
        pushes = np.stack([number, *beside, rng.uniform(3, 80, n)], axis=1)
        spread = np.array([0.0, 5.0, 0.12, 6.0])
        costs, seen, best = np.empty(0), np.empty((0, 4)), (np.inf, np.tile(agent, (1, 1)))
        for _ in range(self.n_iterations):
            ways = [
                self._targets(pose, agent, PUSHES[int(number)].beside(aside, turn), max(2.0, length))
                for number, aside, turn, length in pushes
            ]
            cost, solved = _costs(try_out, pose, ways)
            if cost.min() < best[0]:
                way = ways[cost.argmin()]
                halt = np.tile(way[-1:], (SETTLING * solved[cost.argmin()], 1))
                best = float(cost.min()), np.concatenate([way, halt])
            # Draw the next pushes around the best ones so far, ever closer to them.
            costs, seen = np.concatenate([costs, cost]), np.concatenate([seen, pushes])
            elites = seen[np.argsort(costs, kind="stable")[:N_ELITES]]
            pushes = elites[rng.integers(N_ELITES, size=self.n_samples)]
            pushes = pushes + rng.normal(size=pushes.shape) * spread
            spread = 0.6 * spread
        return best

    def _way_steps(self, pose: Float[np.ndarray, " 3"], agent: Float[np.ndarray, " 2"], push: Push) -> float:
        """Control steps to the start of a push."""
        way = self._way(pose, agent, push)
        if not _inside(rotate(way[-2:], pose[2]) + pose[:2], 8.0):
            return NEVER
        length = np.hypot(*np.diff(way, axis=0).T).sum()
        straight = min(length, STANDOFF)
        return float((length - straight) / self.walk_speed + straight / self.push_speed)

    def _way(
        self, pose: Float[np.ndarray, " 3"], agent: Float[np.ndarray, " 2"], push: Push
    ) -> Float[np.ndarray, "P 2"]:
        """The way to the start of a push in the block's frame: round the block, unless the agent is there already."""
        here = rotate(agent - pose[:2], -pose[2])
        if np.hypot(*(here - push.contact)) < HELD:
            return here[None]
        return np.stack([*walks(self.margin)(here, push.start), push.contact])

    def _targets(
        self, pose: Float[np.ndarray, " 3"], agent: Float[np.ndarray, " 2"], push: Push, length: float
    ) -> Float[np.ndarray, "T 2"]:
        way = self._way(pose, agent, push)
        world = rotate(np.stack([*way, way[-1] + length * push.direction]), pose[2]) + pose[:2]
        return targets(world, STANDOFF / 2 + length, self.walk_speed, self.push_speed, self.acceleration)


def _costs(
    try_out: TryOut, pose: Float[np.ndarray, " 3"], ways: list[Float[np.ndarray, "_ 2"]]
) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Returns the control steps of each way and what follows it, and which ways solve the task."""
    steps = np.array([len(way) for way in ways]) + SETTLING
    padded = [np.concatenate([way, np.tile(way[-1:], (steps.max() - len(way), 1))]) for way in ways]
    _, poses = try_out(np.stack(padded))
    end = poses[np.arange(len(ways)), steps - 1]
    cost = steps + without_a_push(end)
    cost[np.abs(end - pose).max(1) < 0.02] = NEVER  # a push that moves nothing could be repeated for ever
    return cost, pose_error(end) < ENOUGH


def _inside(points: Float[np.ndarray, "*N P 2"], border: float) -> Bool[np.ndarray, "*N"]:
    """Returns whether all points are on the table, at least `border` pixels from its edge."""
    return np.asarray((np.abs(points - TABLE / 2) < TABLE / 2 - border).all((-2, -1)))

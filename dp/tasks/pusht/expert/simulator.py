"""The physics of PushT without pictures and rewards, for planners that try thousands of actions per second."""

import functools
import math
import warnings
from collections.abc import Callable, Iterable

import numpy as np
import pymunk
from gym_pusht.envs.pusht import PushTEnv as GymPushT
from jaxtyping import Float

DT, SUBSTEPS = 0.01, 10
"""Length of a simulation step in seconds, and simulation steps per control step."""

AGENT_RADIUS = 15.0
GOAL = np.array([256.0, 256.0, np.pi / 4])
CENTROID = np.array([0.0, 285 / 7])
"""Centre of gravity of the block in its own frame, in pixels."""

BOXES = (np.array([0, 15]), np.array([60, 15])), (np.array([0, 75]), np.array([15, 45]))
"""Bar and stem of the T in its own frame: centre and half of the size, in pixels."""

_BOXES = [(centre.tolist(), half_size.tolist()) for centre, half_size in BOXES]

AREA, PERIMETER = 6300, 480

CORNERS = np.array([[-60.0, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]])
"""Corners of the T in its own frame, in pixels."""

_EDGES, _PIECES = np.roll(CORNERS, -1, axis=0) - CORNERS, np.array([8, 2, 3, 6, 2, 6, 3, 2])
_STEPS = np.repeat(_EDGES / _PIECES[:, None], _PIECES, axis=0)  # 32 times 15 px, once around
_OUTLINE = CORNERS[0] + np.cumsum(_STEPS, axis=0) - _STEPS / 2
_NORMALS = _STEPS[:, ::-1] * [1, -1] / 15


def rotate(points: Float[np.ndarray, "*P 2"], angle: float | Float[np.ndarray, "*A"]) -> Float[np.ndarray, "*B 2"]:
    """Rotates points by `angle` radians from the x towards the y axis. Points and angles broadcast."""
    cos, sin, x, y = np.cos(angle), np.sin(angle), points[..., 0], points[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def pose_error(pose: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*B"]:
    """Returns the mean distance of the block's outline from the goal's, along the normals, in pixels.

    To first order `pose_error * PERIMETER / (2 * AREA)` of the goal is uncovered: coverage 0.95 is 1.3 px.
    """
    turn, shift = pose[..., 2, None] - GOAL[2], rotate(pose[..., :2] - GOAL[:2], -GOAL[2])
    along, across = (_NORMALS * _OUTLINE).sum(-1), (_NORMALS * rotate(_OUTLINE, np.pi / 2)).sum(-1)
    x, y = _NORMALS.T
    gaps = (np.cos(turn) - 1) * along + np.sin(turn) * across + shift[..., :1] * x + shift[..., 1:] * y
    return np.asarray(np.abs(gaps).mean(-1))


def clearance(agent: Float[np.ndarray, "*A 2"], pose: Float[np.ndarray, "*B 3"]) -> Float[np.ndarray, "*C"]:
    """Pixels between the agent's rim and the block, negative if they overlap."""
    point = rotate(agent - pose[..., :2], -pose[..., 2])
    distances = []
    for centre, half_size in BOXES:
        outside = np.abs(point - centre) - half_size
        distances.append(np.hypot(*np.moveaxis(np.maximum(outside, 0), -1, 0)) + np.minimum(outside.max(-1), 0))
    return np.asarray(np.minimum(*distances) - AGENT_RADIUS)


def _gap(agent: list[float], pose: tuple[float, float, float]) -> float:
    """`clearance` of one agent, thirty times as fast."""
    cos, sin, dx, dy = math.cos(pose[2]), math.sin(pose[2]), agent[0] - pose[0], agent[1] - pose[1]
    px, py = abs(cos * dx + sin * dy), cos * dy - sin * dx
    distances = []
    for (_, middle), (half_x, half_y) in _BOXES:
        outside_x, outside_y = px - half_x, abs(py - middle) - half_y
        distances.append(math.hypot(max(outside_x, 0), max(outside_y, 0)) + min(max(outside_x, outside_y), 0))
    return min(distances) - AGENT_RADIUS


class Simulator:
    """gym-pusht's space, in which an episode may start in any state at any time.

    Nearly exact: what pymunk remembers of the last contacts (for warm starts) is lost with each start. The same
    results to the bit need the same history, so make one for each episode.

    Args:
        private_api: steps through pymunk's C library directly, about 3 times as fast; ask `private_api_agrees()` first.
        walls: whether the table has an edge.
    """

    def __init__(self, private_api: bool, walls: bool = True) -> None:
        self.space = pymunk.Space()
        self.space.damping = 0
        corners = [(5, 506), (5, 5), (506, 5), (506, 506)]
        for a, b in zip(corners, corners[1:] + corners[:1], strict=True) if walls else ():
            self.space.add(GymPushT.add_segment(self.space, a, b, 2))
        self.agent = GymPushT.add_circle(self.space, (256, 400), AGENT_RADIUS)
        self.block, _ = GymPushT.add_tee(self.space, (256, 300), 0)
        self._step = _private_step(self) if private_api else self._public_step

    def rollout(
        self, state: Float[np.ndarray, " 5"], velocity: Float[np.ndarray, " 5"], targets: Float[np.ndarray, "N T 2"]
    ) -> tuple[Float[np.ndarray, "N T 2"], Float[np.ndarray, "N T 3"]]:
        """The agent's positions and the block's poses after each control step of N episodes that start from one state.

        `state` and `velocity` as `PushTEnv` has them.
        """
        positions, velocities = track(state[:2], velocity[:2], targets)
        poses = np.tile(state[2:], (*targets.shape[:2], 1))
        before = np.concatenate([np.broadcast_to(state[:2], positions[:, :1].shape), positions[:, :-1]], axis=1)
        # The physics runs only from the first control step in which the agent may touch the block.
        reach = 2 + np.hypot(*np.moveaxis(positions - before, -1, 0))
        touching = clearance(before, state[2:]) < reach
        for n in np.flatnonzero(touching.any(1)):
            first = touching[n].argmax()  # until then the block lies still
            self._start(before[n, first], state[2:], velocity[2:] * (first == 0))
            poses[n, first:] = self._follow(before[n, first:], velocities[n, first:], reach[n, first:])
        return positions, poses

    def _follow(
        self, before: Float[np.ndarray, "T 2"], velocities: Float[np.ndarray, "T 10 2"], reach: Float[np.ndarray, " T"]
    ) -> list[tuple[float, float, float]]:
        """The block's poses. Whenever the agent has been out of reach for a control step the block lies still again."""
        poses, near = [self._pose()], True
        for position, steps, far in zip(before.tolist(), velocities.tolist(), reach.tolist(), strict=True):
            near, was_near = _gap(position, poses[-1]) < far, near
            if near and not was_near:
                self.agent.position = position
            for v in steps if near or was_near else ():
                self._step(v)
            poses.append(self._pose() if near or was_near else poses[-1])
        return poses[1:]

    def _pose(self) -> tuple[float, float, float]:
        return (*self.block.position, self.block.angle)

    def _start(
        self, agent: Float[np.ndarray, " 2"], pose: Float[np.ndarray, " 3"], velocity: Float[np.ndarray, " 3"]
    ) -> None:
        self.agent.position, self.block.position = (-3000.0, -3000.0), (256.0, 256.0)
        for _ in range(4):  # contacts are remembered for three steps
            self._step((0.0, 0.0))
        self.block.angle = float(pose[2])  # turns about the centre of gravity: the position comes second
        self.block.position = float(pose[0]), float(pose[1])
        self.block.velocity, self.block.angular_velocity = (float(velocity[0]), float(velocity[1])), float(velocity[2])
        self.agent.position = float(agent[0]), float(agent[1])

    def _public_step(self, velocity: Iterable[float]) -> None:
        self.agent.velocity = tuple(velocity)
        self.space.step(DT)


def _private_step(simulator: Simulator) -> Callable[[Iterable[float]], None]:
    from pymunk._chipmunk_cffi import lib

    space, agent = simulator.space._space, simulator.agent._body
    set_velocity, step = lib.cpBodySetVelocity, lib.cpSpaceStep

    def private_step(velocity: Iterable[float]) -> None:
        set_velocity(agent, velocity)
        step(space, DT)

    return private_step


@functools.cache
def private_api_agrees() -> bool:
    """Returns whether pymunk's C library can be called directly and equals its public interface to the bit."""
    state = np.array([150.0, 250.0, 256.0, 256.0, 1.0])
    targets = np.cumsum(np.full((1, 20, 2), [12.0, 1.0]), axis=1) + state[:2]
    try:
        public, private = (
            Simulator(private_api).rollout(state, np.zeros(5), targets)[1] for private_api in (False, True)
        )
        if np.array_equal(public, private):
            return True
    except (ImportError, AttributeError, TypeError):
        pass
    warnings.warn(f"pymunk {pymunk.version} has another C library: planning takes up to 3 times as long", stacklevel=2)
    return False


def track(
    position: Float[np.ndarray, " 2"], velocity: Float[np.ndarray, " 2"], targets: Float[np.ndarray, "N T 2"]
) -> tuple[Float[np.ndarray, "N T 2"], Float[np.ndarray, "N T 10 2"]]:
    """The agent's positions after each control step and its velocities in each simulation step."""
    n, horizon, _ = targets.shape
    positions, velocities = np.empty((n, horizon, 2)), np.empty((n, horizon, SUBSTEPS, 2))
    for t in range(horizon):
        distance = targets[:, t] - position
        velocities[:, t] = _RESPONSE[0] * distance[:, None] + _RESPONSE[1] * np.expand_dims(velocity, -2)
        position, velocity = position + velocities[:, t].sum(1) * DT, velocities[:, t, -1]
        positions[:, t] = position
    return positions, velocities


def _response() -> Float[np.ndarray, "2 10 1"]:
    """Velocities in the simulation steps of a control step: for the target 1 px away at rest; for 1 px/s at the target.

    gym-pusht's PD law is linear, and the agent is never deflected.
    """
    distance, velocity = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    velocities = []
    for _ in range(SUBSTEPS):
        # A PD law with gains 100 and 20, in steps of DT.
        velocity = velocity + (100 * distance - 20 * velocity) * DT
        distance = distance - velocity * DT
        velocities.append(velocity)
    return np.stack(velocities, axis=1)[..., None]


_RESPONSE = _response()

"""gym-pusht under the paper's protocol: its initial states, and pictures only on demand."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import pygame
import shapely
from gym_pusht.envs.pusht import PushTEnv as GymPushT
from gym_pusht.envs.pymunk_override import DrawOptions
from jaxtyping import Float, UInt8
from pygame import Surface
from pymunk import Body, Vec2d
from pymunk.pygame_util import to_pygame
from shapely.geometry.base import BaseGeometry

from dp.tasks.pusht import state as pusht
from dp.tasks.pusht.expert.simulator import CORNERS, clearance, rotate

IMAGE_SIZE = 96

DIGITS = 12
"""Decimals of coverage and reward. gym-pusht adds the areas of the block's parts in the order of a set, that is of
memory addresses: the last digits differ from one environment to the next although the states are equal to the bit."""


LEVER, BORDER, N_TRIES = 60.0, 8.0, 20
"""For disturbances: pixels of a kick that turn the block by a radian at most, distance from the edge of the table, and
attempts to find room."""


class _Simulation(GymPushT):
    """A faster gym-pusht: the same arithmetic in the same order, equal to the bit."""

    _last_action: np.ndarray | None

    def _setup(self) -> None:
        super()._setup()
        self._corners = [shape.get_vertices() for shape in self.block.shapes]
        self._goal = self._shape(self.get_goal_pose_body(self.goal_pose))
        self._screen, self._empty = Surface((512, 512)), Surface((512, 512))
        self._empty.fill("white")
        for part in self._goal.geoms:
            points = [to_pygame(Vec2d(*point), self._empty) for point in part.exterior.coords]
            pygame.draw.polygon(self._empty, "LightGreen", points)

    def _draw(self) -> Surface:
        self._screen.blit(self._empty, (0, 0))
        self.space.debug_draw(DrawOptions(self._screen))
        return self._screen

    def advance(self, target_x: float, target_y: float) -> None:
        """Moves towards a position for one control step, in floats instead of vectors."""
        self.n_contact_points = 0
        for _ in range(int(1 / (self.dt * self.control_hz))):
            (x, y), (vx, vy) = self.agent.position, self.agent.velocity
            ax = self.k_p * (target_x - x) + self.k_v * (0 - vx)
            ay = self.k_p * (target_y - y) + self.k_v * (0 - vy)
            self.agent.velocity = vx + ax * self.dt, vy + ay * self.dt
            self.space.step(self.dt)
        self._last_action = np.array([target_x, target_y])

    def coverage(self) -> float:
        """Share of the goal that the block covers."""
        return float(self._goal.intersection(self._shape(self.block)).area / self._goal.area)

    def _shape(self, body: Body) -> BaseGeometry:
        rings = [[body.local_to_world(v) for v in (*corners, corners[0])] for corners in self._corners]
        return shapely.multipolygons(shapely.polygons(rings))

    def _get_img(self, screen: Surface, width: int, height: int, render_action: bool = False) -> np.ndarray:
        if render_action:
            return super()._get_img(screen, width, height, render_action)
        # The surface's memory as it lies there, rows of blue, green, red and a spare byte, instead of a strided copy.
        pixels = np.frombuffer(screen.get_buffer(), np.uint8)  # type: ignore[call-overload]
        pixels = pixels.reshape(*reversed(screen.get_size()), 4)
        return np.ascontiguousarray(cv2.resize(pixels, (width, height))[..., 2::-1])


class PushTEnv:
    """One PushT episode at a time.

    Args:
        obs_names: what `observe` returns, names as in `dp.tasks.pusht` and "image".

    `coverage` (share of the goal covered by the block, 0..1), `reward` (coverage / 0.95, at most 1) and `success`
    (coverage > 0.95) describe the present state and are computed on demand.
    """

    control_hz = 10.0

    def __init__(self, obs_names: Sequence[str]) -> None:
        self.obs_names = list(obs_names)
        self._coverage: float | None = 0.0
        self._env = _Simulation(
            obs_type="state",
            render_mode="rgb_array",
            observation_width=IMAGE_SIZE,
            observation_height=IMAGE_SIZE,
            visualization_width=384,
            visualization_height=384,
        )

    def reset(self, seed: int) -> None:
        """Starts the episode that the reference environment starts from `seed`."""
        self.reset_to(pusht.initial_state(seed))

    def reset_to_observed(self, state: Float[np.ndarray, " 5"]) -> None:
        """Starts from a state as the data set stores it (`pusht.low_dim_obs` explains it), at rest, exact to 1e-13."""
        self.reset_to(pusht.initial_state_for(state))

    def reset_to(self, initial_state: Float[np.ndarray, " 5"]) -> None:
        """Resets as the reference environment's option `reset_to_state` does, see `pusht.initial_state_for`."""
        self._env.reset(options={"reset_to_state": initial_state})
        self._env._last_action = None  # `render` would mark the last episode's target
        self._coverage = 0.0  # the reference environment gives no reward for the initial state

    def step(self, action: Float[np.ndarray, " 2"]) -> None:
        """Moves towards `action`, a position in pixels, for a tenth of a second."""
        self._env.advance(float(action[0]), float(action[1]))
        self._coverage = None

    def _exact_coverage(self) -> float:
        if self._coverage is None:
            self._coverage = self._env.coverage()
        return self._coverage

    @property
    def coverage(self) -> float:
        return round(self._exact_coverage(), DIGITS)

    @property
    def reward(self) -> float:
        return round(min(1.0, self._exact_coverage() / self._env.success_threshold), DIGITS)

    @property
    def success(self) -> bool:
        return self._exact_coverage() > self._env.success_threshold

    @property
    def terminated(self) -> bool:
        """Whether the episode is over: a solved one ends."""
        return self.success

    def info(self) -> dict[str, float]:
        return {"coverage": self.coverage}

    @property
    def state(self) -> Float[np.ndarray, " 5"]:
        return self._env.get_obs()

    @property
    def velocity(self) -> Float[np.ndarray, " 5"]:
        """Velocities of agent and block: pixels per second, and radians per second."""
        agent, block = self._env.agent, self._env.block
        return np.array([*agent.velocity, *block.velocity, block.angular_velocity])

    def snapshot(self) -> dict[str, np.ndarray]:
        """The true state, from which a critic may try actions: `state` (5,) and `velocity` (5,)."""
        return {"state": self.state, "velocity": self.velocity}

    def disturb(self, rng: np.random.Generator, strength: float) -> None:
        """Moves the block by `strength` pixels in a random direction and turns it, where there is room for it."""
        block, (x, y), angle = self._env.block, self._env.block.position, self._env.block.angle
        for _ in range(N_TRIES):
            direction, turn = rng.uniform(0, 2 * np.pi), rng.uniform(-1, 1) * strength / LEVER
            pose = np.array([x + strength * np.cos(direction), y + strength * np.sin(direction), angle + turn])
            corners = rotate(CORNERS, pose[2]) + pose[:2]
            on_table = ((corners > BORDER) & (corners < 512 - BORDER)).all()
            if on_table and clearance(np.array(self._env.agent.position), pose) > 0:
                block.angle = pose[2]  # turns about the centre of gravity: the position comes second
                block.position = pose[0], pose[1]
                self._env.space.reindex_shapes_for_body(block)
                self._coverage = None
                return

    @property
    def n_contacts(self) -> int:
        """Contact points in the last control step, per simulation step, rounded up, as in the reference environment."""
        return math.ceil(self._env.n_contact_points / round(1 / (self._env.dt * self.control_hz)))

    def outlines(self) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
        """The block as it lies now and its goal: closed polygons, pixels."""
        shapes = (self._env._shape(self._env.block), self._env._goal)
        block, goal = (np.array(shapely.union_all(shape.geoms, grid_size=1e-6).exterior.coords) for shape in shapes)
        return block, goal

    def observe(self) -> dict[str, np.ndarray]:
        """The present observation, raw: image uint8 (96, 96, 3), everything else float32."""
        obs = pusht.low_dim_obs(self.state, self.obs_names)
        if "image" in self.obs_names:
            obs["image"] = self._env._render()  # the 96 x 96 picture of the data set; `render()` is another one
        return {name: obs[name] for name in self.obs_names}

    def render(self) -> UInt8[np.ndarray, "384 384 3"]:
        """A picture for people, with the target of the last action marked."""
        return self._env.render()

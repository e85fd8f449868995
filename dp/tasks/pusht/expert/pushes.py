"""The pushes that people use on the T, the agent's way to them, and its speed on the way. All in the block's frame."""

import functools
from typing import NamedTuple

import numpy as np
import shapely
from jaxtyping import Float

from dp.tasks.pusht.expert.simulator import AGENT_RADIUS, CORNERS, clearance, rotate

STANDOFF = 45.0
"""Distance, in pixels, over which the agent approaches a contact in a straight line."""


class Push(NamedTuple):
    """The agent's centre comes straight to `contact`, in the direction `approach`, and continues in `direction`."""

    contact: Float[np.ndarray, " 2"]
    approach: Float[np.ndarray, " 2"]
    direction: Float[np.ndarray, " 2"]

    def beside(self, aside: float, turn: float) -> "Push":
        """A push `aside` pixels along the same face (if it is on one) that is turned by `turn` radians."""
        on_a_face = self.approach.prod() == 0
        shift = aside * on_a_face * np.array([-self.approach[1], self.approach[0]])
        return self._replace(contact=self.contact + shift, direction=rotate(self.direction, turn))

    @property
    def start(self) -> Float[np.ndarray, " 2"]:
        return self.contact - STANDOFF * self.approach


def _pushes() -> list[Push]:
    """Pushes onto the middle of a face, off its middle (they turn the T), and in the two inner corners."""
    diagonal = (-(0.5**0.5), -(0.5**0.5))
    faces = {
        (0, -1): [(0, 135), (50, 45)],
        (-1, 0): [(75, 15), (30, 75), (30, 105)],
        (0, 1): [(0, -15), (20, -15), (42, -15)],
    }
    right = [np.array([contact, inward, inward], float) for inward, contacts in faces.items() for contact in contacts]
    # The inner corner holds the agent, which then pushes along either face or the diagonal.
    right += [np.array([(30.5, 45.5), diagonal, direction]) for direction in [(-1, 0), (0, -1), diagonal]]
    left = [push * [-1, 1] for push in right if push[0, 0] > 0]
    return [Push(*push) for push in [*right, *left]]


PUSHES = _pushes()


class Walks:
    """The shortest ways round the block at a distance of `margin` pixels: a visibility graph of a ring of points."""

    def __init__(self, margin: float) -> None:
        self.margin = margin
        ring = shapely.Polygon(CORNERS).buffer(AGENT_RADIUS + margin).exterior
        self._ring = shapely.get_coordinates(ring.interpolate(np.arange(48) / 48, normalized=True))
        length = np.stack([self._straight(point) for point in self._ring])
        self._next = np.tile(np.arange(len(length)), (len(length), 1))
        # All shortest paths: go through `via` if that is shorter, and remember the next point on the way.
        for via in range(len(length)):  # Floyd 1962
            detour = length[:, via, None] + length[via]
            self._next = np.where(detour < length, self._next[:, via, None], self._next)
            length = np.minimum(length, detour)
        self._length = length
        self._from = functools.lru_cache(maxsize=64)(lambda x, y: self._straight(np.array([x, y])))

    def __call__(self, start: Float[np.ndarray, " 2"], end: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "P 2"]:
        """Corners of the way, rounded. `start` and `end` may lie closer to the block than `margin`."""
        total = self._from(*start)[:, None] + self._length + self._from(*end)  # a plan looks from few places
        point, last = np.unravel_index(total.argmin(), total.shape)
        path = [start, self._ring[point]]
        while point != last:
            point = self._next[point, last]
            path.append(self._ring[point])
        return _rounded(np.stack([*path, end]))

    def _straight(self, point: Float[np.ndarray, " 2"]) -> Float[np.ndarray, " n"]:
        """Distance to each point of the ring; infinite if the block is in the way."""
        way = point + np.linspace(0, 1, 25)[:, None, None] * (self._ring - point)
        gap = clearance(way, np.zeros(3))
        return np.where(gap.min(0) > min(gap[0, 0], self.margin) - 2, np.hypot(*(self._ring - point).T), np.inf)


@functools.cache
def walks(margin: float) -> Walks:
    return Walks(margin)


def _rounded(path: Float[np.ndarray, "P 2"]) -> Float[np.ndarray, "Q 2"]:
    """Cuts the corners, twice (Chaikin 1974)."""
    for _ in range(2):
        cut = np.stack([0.75 * path[:-1] + 0.25 * path[1:], 0.25 * path[:-1] + 0.75 * path[1:]], axis=1)
        path = np.concatenate([path[:1], cut.reshape(-1, 2)[1:-1], path[-1:]])
    return path


def targets(
    path: Float[np.ndarray, "P 2"], push_length: float, walk_speed: float, push_speed: float, acceleration: float
) -> Float[np.ndarray, "T 2"]:
    """A target for each control step on the way along `path`, from and to a halt, float32's values.

    push_length: the last pixels of the path, with the limit push_speed. Speeds in pixels per control step, acceleration
    in pixels per control step squared.
    """
    # Speed limits at places about 2 px apart along the path.
    corners = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    place = np.linspace(0, corners[-1], max(2, int(corners[-1] / 2)))
    limit = np.where(place < corners[-1] - push_length, walk_speed, push_speed)
    limit[0], limit[-1] = 3.0, 2.0
    # Forwards and backwards, speeds may change only as fast as the acceleration allows.
    speed, gain = limit.tolist(), 2 * acceleration * place[1]
    for i in range(1, len(speed)):
        speed[i] = min(speed[i], (speed[i - 1] ** 2 + gain) ** 0.5)
    for i in reversed(range(len(speed) - 1)):
        speed[i] = min(speed[i], (speed[i + 1] ** 2 + gain) ** 0.5)
    # Integrate to times, and read the place off at each control step.
    mean = (np.array(speed[1:]) + speed[:-1]) / 2
    time = np.concatenate([[0], np.cumsum(place[1] / mean)])
    at = np.interp(np.arange(1, int(np.ceil(time[-1])) + 1), time, place)
    along = np.stack([np.interp(at, corners, path[:, 0]), np.interp(at, corners, path[:, 1])], axis=-1)
    return np.clip(along, 0, 512).astype(np.float32).astype(np.float64)

"""Pictures of Block Push for people, drawn in an engine of their own, so that they cannot change an episode."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from dp.tasks.blockpush.engine import Engine, arm_file
from dp.tasks.blockpush.layout import BLOCK_SIDE, TARGET_SIDE
from dp.tasks.blockpush.world import ARM_JOINTS, FLANGE, TOOL_LENGTH, TOOL_RADIUS, Pose

WIDTH, HEIGHT = 384, 256
EYE, LOOKED_AT, ANGLE = [0.98, -0.06, 0.66], [0.37, -0.06, 0.03], 46
"""Metres, and the field of view in degrees: from the other side of the table, as the reference environment looks."""

Colour = tuple[float, float, float, float]

RED, GREEN, BLUE = (0.80, 0.20, 0.18, 1.0), (0.16, 0.55, 0.30, 1.0), (0.35, 0.55, 0.85, 1.0)
SAND, BLACK, WHITE, GREY = (
    (0.86, 0.85, 0.82, 1.0),
    (0.15, 0.15, 0.17, 1.0),
    (0.93, 0.93, 0.94, 1.0),
    (0.75, 0.76, 0.78, 1.0),
)

ORIGIN = (0.0, 0.0, 0.0)

TABLE = [0.4, 0.55, 0.01]
"""Half the extents of the table, metres."""


class Camera:
    """A copy of the scene with all that can be seen."""

    def __init__(self) -> None:
        engine = self._engine = Engine()
        self._add_box(SAND, TABLE, [0.33, 0.0, -TABLE[2]])
        self._arm = engine.loadURDF(str(arm_file()), useFixedBase=True, flags=engine.URDF_IGNORE_COLLISION_SHAPES)
        for link in range(-1, ARM_JOINTS[-1] + 1):
            engine.changeVisualShape(self._arm, link, rgbaColor=GREY if link % 2 else WHITE)
        cylinder = engine.createVisualShape(
            engine.GEOM_CYLINDER, radius=TOOL_RADIUS, length=TOOL_LENGTH, rgbaColor=BLACK
        )
        self._tool = engine.createMultiBody(0, -1, cylinder)
        self._blocks = [self._add_box(colour, [BLOCK_SIDE / 2] * 3) for colour in (RED, GREEN)]
        self._targets = [self._add_box(BLUE, [TARGET_SIDE / 2, TARGET_SIDE / 2, 0.001]) for _ in range(2)]
        self._view = engine.computeViewMatrix(EYE, LOOKED_AT, [0, 0, 1])
        self._projection = engine.computeProjectionMatrixFOV(ANGLE, WIDTH / HEIGHT, 0.1, 3)

    def picture(
        self, arm: Float[np.ndarray, " 6"], blocks: Sequence[Pose], targets: Float[np.ndarray, "2 3"]
    ) -> UInt8[np.ndarray, "256 384 3"]:
        """arm: angles of the joints, radians. targets: x, y, yaw."""
        engine = self._engine
        for joint, angle in zip(ARM_JOINTS, arm, strict=True):
            engine.resetJointState(self._arm, joint, angle)
        hand = engine.getLinkState(self._arm, ARM_JOINTS[-1], computeForwardKinematics=True)[4]
        engine.resetBasePositionAndOrientation(self._tool, [*hand[:2], FLANGE - TOOL_LENGTH / 2], [0, 0, 0, 1])
        for body, pose in zip(self._blocks, blocks, strict=True):
            engine.resetBasePositionAndOrientation(body, *pose)
        for body, (x, y, yaw) in zip(self._targets, targets, strict=True):
            turn = engine.getQuaternionFromEuler([0, 0, yaw])
            engine.resetBasePositionAndOrientation(body, [x, y, 0.001], turn)
        light = {"lightDirection": [0.5, -0.5, 1.5], "shadow": 1, "renderer": engine.ER_TINY_RENDERER}
        pixels = engine.getCameraImage(WIDTH, HEIGHT, self._view, self._projection, **light)[2]
        return np.ascontiguousarray(np.reshape(pixels, (HEIGHT, WIDTH, 4))[..., :3], np.uint8)

    def _add_box(self, colour: Colour, half_extents: Sequence[float], position: Sequence[float] = ORIGIN) -> int:
        engine = self._engine
        shape = engine.createVisualShape(engine.GEOM_BOX, halfExtents=half_extents, rgbaColor=colour)
        return engine.createMultiBody(0, -1, shape, position)

"""The physics: an xArm6 holds a cylinder and moves it over a table with two blocks."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float

from dp.tasks.blockpush.arm import joints
from dp.tasks.blockpush.engine import Engine, arm_file
from dp.tasks.blockpush.layout import BLOCK_SIDE, EFFECTOR_START

TOOL_RADIUS, TOOL_LENGTH = 0.0125, 0.135
"""The cylinder in the arm's hand, metres."""

FLANGE = 0.15
"""Height of the flange that holds the cylinder: the cylinder ends 1.5 cm above the table."""

ARM_JOINTS = list(range(1, 7))
"""Numbers of the moving joints in the arm's description, and of the links that they move."""

SUBSTEPS = 12
"""Steps of the physics, at 120 Hz, in a control step at 10 Hz."""

SETTLING = 24
"""Steps of the physics before an episode, in which the blocks come to rest."""

BLOCK_MASS, TOOL_MASS, LINK_INERTIA = 0.1, 0.1, 0.005
"""Kilograms, and kg m² about each axis of a link, which would have none without a shape."""

TABLE_FRICTION, BLOCK_FRICTION, TOOL_FRICTION = 1.0, 0.5, 0.5
"""Coefficients. The friction between two bodies is the product of theirs."""

TORQUE, GAIN = 500.0, 0.5
"""The greatest torque of a joint, Nm, and the share of its error that a step of the physics corrects."""

Pose = tuple[tuple[float, ...], tuple[float, ...]]
"""Position (3) and quaternion (4) of a body."""


class World:
    """Two blocks, an arm and a table.

    It is built anew for every episode: what an engine remembers of earlier contacts would change the last digits.
    """

    def __init__(self) -> None:
        self._engine = Engine()

    def reset(self, blocks: Float[np.ndarray, "2 3"]) -> None:
        """Begins with the blocks in these poses (x, y, yaw) and the effector at `EFFECTOR_START`, all at rest."""
        engine = self._engine
        engine.resetSimulation()
        engine.setGravity(0, 0, -9.8)
        engine.setPhysicsEngineParameter(fixedTimeStep=0.1 / SUBSTEPS)
        table = engine.createMultiBody(0, engine.createCollisionShape(engine.GEOM_PLANE))
        engine.changeDynamics(table, -1, lateralFriction=TABLE_FRICTION)
        self._blocks = [self._add_block(pose) for pose in blocks]
        self._angles = joints(EFFECTOR_START, FLANGE)
        self._arm = self._add_arm()
        self._tool = self._add_tool()
        self._advance([self._angles] * SETTLING)

    def move(self, effector: Float[np.ndarray, " 2"]) -> None:
        """Moves the effector's target to this position within a control step, each joint at a constant speed."""
        angles = joints(effector, FLANGE)
        self._advance(np.linspace(self._angles, angles, SUBSTEPS + 1)[1:])
        self._angles = angles

    def place(self, block: int, position: Float[np.ndarray, " 2"]) -> None:
        """Puts a block somewhere else, at rest."""
        (_, _, height), turn = self.block_poses[block]
        self._engine.resetBasePositionAndOrientation(self._blocks[block], [*position, height], turn)

    @property
    def effector(self) -> Float[np.ndarray, " 2"]:
        """The position of the cylinder, which follows its target at a distance of a few millimetres."""
        return np.array(self._engine.getBasePositionAndOrientation(self._tool)[0][:2])

    @property
    def arm(self) -> Float[np.ndarray, " 6"]:
        """Angles of the joints, radians."""
        return np.array([state[0] for state in self._engine.getJointStates(self._arm, ARM_JOINTS)])

    @property
    def block_poses(self) -> list[Pose]:
        return [self._engine.getBasePositionAndOrientation(block) for block in self._blocks]

    @property
    def blocks(self) -> Float[np.ndarray, "2 3"]:
        """x, y and yaw of each block. The yaw is between -pi/2 and pi/2: a block looks alike from both sides."""
        return np.array([(*position[:2], _yaw(turn)) for position, turn in self.block_poses])

    def _add_block(self, pose: Float[np.ndarray, " 3"]) -> int:
        engine = self._engine
        shape = engine.createCollisionShape(engine.GEOM_BOX, halfExtents=[BLOCK_SIDE / 2] * 3)
        turn = engine.getQuaternionFromEuler([0, 0, pose[2]])
        block = engine.createMultiBody(BLOCK_MASS, shape, -1, [*pose[:2], BLOCK_SIDE / 2], turn)
        engine.changeDynamics(block, -1, lateralFriction=BLOCK_FRICTION)
        return block

    def _add_arm(self) -> int:
        """Only the cylinder touches anything, so the arm needs no shapes, which take 50 MB and 30 ms."""
        engine = self._engine
        flags = engine.URDF_IGNORE_VISUAL_SHAPES | engine.URDF_IGNORE_COLLISION_SHAPES
        arm = engine.loadURDF(str(arm_file()), useFixedBase=True, flags=flags)
        for joint, angle in zip(ARM_JOINTS, self._angles, strict=True):
            engine.changeDynamics(arm, joint, localInertiaDiagonal=[LINK_INERTIA] * 3)
            engine.resetJointState(arm, joint, angle)
        return arm

    def _add_tool(self) -> int:
        engine = self._engine
        shape = engine.createCollisionShape(engine.GEOM_CYLINDER, radius=TOOL_RADIUS, height=TOOL_LENGTH)
        tool = engine.createMultiBody(TOOL_MASS, shape, -1, [*EFFECTOR_START, FLANGE - TOOL_LENGTH / 2])
        engine.changeDynamics(tool, -1, lateralFriction=TOOL_FRICTION)
        top, upside_down = [0, 0, TOOL_LENGTH / 2], [1, 0, 0, 0]
        ends = self._arm, ARM_JOINTS[-1], tool, -1
        engine.createConstraint(*ends, engine.JOINT_FIXED, [0, 0, 0], [0, 0, 0], top, [0, 0, 0, 1], upside_down)
        return tool

    def _advance(self, path: Iterable[Float[np.ndarray, " 6"]]) -> None:
        engine, n = self._engine, len(ARM_JOINTS)
        motors = {"forces": [TORQUE] * n, "positionGains": [GAIN] * n}
        for angles in path:
            engine.setJointMotorControlArray(self._arm, ARM_JOINTS, engine.POSITION_CONTROL, angles.tolist(), **motors)
            engine.stepSimulation()


def _yaw(quaternion: tuple[float, ...]) -> float:
    x, y, z, w = quaternion
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return float((yaw + np.pi / 2) % np.pi - np.pi / 2)

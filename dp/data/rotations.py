"""Rotations in actions, as networks learn them best."""

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

ARM = 7
"""Numbers per arm: position (3), rotation (3), gripper (1)."""


def to_rotation_6d(action: Float[np.ndarray, "N Da"]) -> Float[np.ndarray, "N Do"]:
    """Position, axis-angle and gripper of each arm -> position, 6-d rotation and gripper: (N, 7) -> (N, 10), and
    (N, 14) of two arms -> (N, 20), float32.

    The six numbers are the first two rows of the rotation matrix (Zhou et al. 2019, https://arxiv.org/abs/1812.07035),
    as in the reference implementation (`RotationTransformer("axis_angle", "rotation_6d")`). Raises ValueError for
    other actions.
    """
    if action.shape[1] not in (ARM, 2 * ARM):
        raise ValueError(
            f"rotation=6d, but actions have {action.shape[1]} numbers: expected position, axis-angle and gripper of "
            f"one arm ({ARM}) or two ({2 * ARM}). Set dataset.rotation=null"
        )
    arms = action.reshape(-1, ARM)
    matrices = Rotation.from_rotvec(arms[:, 3:6]).as_matrix()
    mapped = np.concatenate([arms[:, :3], matrices[:, :2].reshape(-1, 6), arms[:, 6:]], axis=1)
    return mapped.reshape(len(action), -1).astype(np.float32)

"""PushT: push a T-shaped block onto its goal pose (Florence et al. 2022; Chi et al. 2023, section V.B).

A state is [agent x, agent y, block x, block y, block angle]: pixels 0-512, radians. Actions are target agent positions
in pixels; control runs at 10 Hz.
"""

from collections.abc import Collection

import cv2
import numpy as np
from jaxtyping import Float

KEYPOINTS = np.array(
    [
        [9.26979, 90.04097],
        [-60.98347, -1.18673],
        [60.91276, -1.39336],
        [-0.27050, 25.54363],
        [-14.06493, 122.81585],
        [39.00274, 32.85740],
        [-39.96641, 32.72966],
        [-16.82434, 62.86318],
        [23.54146, -1.70029],
    ]
)
"""The data set's nine keypoints in the block's own frame, pixels, measured from `data/keypoint` and `data/state`.

Three quarters of the stored keypoints agree with the stored state to 1e-3 px; in contact they lag by up to 2 px. Here
they are always computed from the state, for data and environment alike.
"""


def low_dim_obs(state: Float[np.ndarray, "*B 5"], names: Collection[str]) -> dict[str, np.ndarray]:
    """The low-dimensional observations among `names`, float32, in raw units.

    "agent_pos" (*B, 2) pixels; "block_pose" (*B, 4): x, y in pixels, cosine and sine of the angle; "keypoint"
    (*B, 9, 2) pixels: points of the block as in the data set. "image" is skipped: it is not computed from the state.

    Raises ValueError for another name.
    """
    agent, block, angle = state[..., :2], state[..., 2:4], state[..., 4]
    cos, sin = np.cos(angle), np.sin(angle)
    made = {
        "agent_pos": lambda: agent,
        "block_pose": lambda: np.concatenate([block, np.stack([cos, sin], -1)], -1),
        "keypoint": lambda: block[..., None, :] + _rotate(KEYPOINTS, cos[..., None], sin[..., None]),
    }
    unknown = set(names) - set(made) - {"image"}
    if unknown:
        raise ValueError(f"PushT has no observation {sorted(unknown)}, expected some of {['image', *made]}")
    return {name: made[name]().astype(np.float32) for name in names if name != "image"}


def _rotate(points: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    x, y = points[:, 0], points[:, 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def mirror(name: str, array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The array `name` of the data set as the task's mirror image shows it, in `out` or in a new array.

    The T is symmetric about its stem. At the goal (256, 256, pi / 4) its stem lies on the workspace's anti-diagonal, so
    the reflection (x, y) -> (512 - y, 512 - x) maps workspace, goal and block to themselves, and a demonstration to
    another one. "img" (*B, Y, X, 3), "action" (*B, 2), "state" (*B, 5).
    """
    out = np.empty_like(array, order="C") if out is None else out
    if name == "img":
        shape = (-1, *array.shape[-3:])
        for image, mirrored in zip(array.reshape(shape), out.reshape(shape), strict=True):
            mirrored[:] = cv2.flip(cv2.transpose(image), -1)  # four times as fast as numpy
        return out
    out[:] = array
    # Swap and reflect each pair (x, y), and reflect the angle.
    for x in range(0, 2 if name == "action" else 4, 2):
        out[..., x], out[..., x + 1] = 512 - array[..., x + 1], 512 - array[..., x]
    if name == "state":
        out[..., 4] = (np.pi / 2 - array[..., 4]) % (2 * np.pi)
    return out


def initial_state(seed: int) -> Float[np.ndarray, " 5"]:
    """The state that the reference environment starts from after `env.seed(seed)`, before its first simulation step.

    gym-pusht >= 0.1.6 draws another state for the same seed. All 206 demonstrations start from seeds 0..205 here, the
    paper's test episodes from 100000 on.
    """
    rng = np.random.RandomState(seed)
    return np.array(
        [
            rng.randint(50, 450),
            rng.randint(50, 450),
            rng.randint(100, 400),
            rng.randint(100, 400),
            rng.randn() * 2 * np.pi - np.pi,
        ]
    )


def initial_state_for(state: Float[np.ndarray, " 5"]) -> Float[np.ndarray, " 5"]:
    """Returns the state to reset the environment to so that it is in `state`.

    The two differ: it sets the block's position first and then turns it about its centre of gravity, 45 px off.
    """
    agent_x, agent_y, x, y, angle = state
    return np.array([agent_x, agent_y, x - 45 * np.sin(angle), y + 45 * (np.cos(angle) - 1), angle])

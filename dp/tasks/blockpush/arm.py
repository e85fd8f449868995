"""Inverse kinematics of the xArm6 that points straight down, in closed form."""

import numpy as np
from jaxtyping import Float

SHOULDER = 0.267
"""Height of the second joint, metres."""

UPPER_ARM, FOREARM = np.array([0.0535, -0.2845]), np.array([0.0775, 0.3425])
"""From the second joint to the third, and on to the fifth: outwards and downwards, metres, at angles of zero."""

HAND = np.array([0.076, 0.097])
"""From the fifth joint to the flange of a hand that points down."""


def joints(position: Float[np.ndarray, " 2"], height: float) -> Float[np.ndarray, " 6"]:
    """Angles, in radians, that hold the flange at a position and height in metres, pointing down, with the elbow up.

    The lengths are those of xarm6_robot.urdf. The first joint turns the arm towards the position. The second and the
    third are a planar arm of two links, and the fifth keeps the hand upright.
    """
    outwards, downwards = np.array([np.hypot(*position), SHOULDER - height]) - HAND
    upper, fore, far = np.hypot(*UPPER_ARM), np.hypot(*FOREARM), np.hypot(outwards, downwards)
    bend = np.arccos((far**2 + upper**2 - fore**2) / (2 * far * upper))  # law of cosines
    lift = np.arctan2(downwards, outwards) - bend
    elbow = upper * np.array([np.cos(lift), np.sin(lift)])
    tilt = np.arctan2(downwards - elbow[1], outwards - elbow[0])
    second = lift - np.arctan2(UPPER_ARM[1], UPPER_ARM[0])
    third = tilt - np.arctan2(FOREARM[1], FOREARM[0]) - second
    return np.array([np.arctan2(position[1], position[0]), second, third, 0.0, -second - third, 0.0])

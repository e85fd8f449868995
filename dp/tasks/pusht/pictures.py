"""The images of a demonstration that was stored without them."""

import numpy as np
from jaxtyping import Float, UInt8
from numcodecs import Blosc

from dp.tasks.pusht.env import IMAGE_SIZE, PushTEnv

PACKING = Blosc(cname="lz4", clevel=1)
"""Compressor of images on their way between processes."""

Recorded = tuple[Float[np.ndarray, " 5"], Float[np.ndarray, "T 5"], Float[np.ndarray, "T 2"]]


def render_episode(recorded: Recorded) -> UInt8[np.ndarray, "T 96 96 3"]:
    """The images of an episode, given its initial state, states, and executed actions.

    The episode runs once more, because a stored state is rounded, and a polygon's corner at the edge of a pixel could
    be drawn in the next one. From the first frame whose state differs from the stored one (other versions recorded it),
    the stored states are drawn.
    """
    initial_state, states, executed = recorded
    env = PushTEnv(["image"])
    env.reset_to(initial_state)
    follows = True
    images = np.empty((len(states), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for t, (state, action) in enumerate(zip(states, executed, strict=True)):
        follows = follows and np.array_equal(env.state.astype(np.float32), state)
        if not follows:
            env.reset_to_observed(state.astype(np.float64))
        images[t] = env.observe()["image"]
        if follows:
            env.step(action)
    return images


def pack_episode(recorded: Recorded) -> bytes:
    """`render_episode` for another process. This module does not import torch, so workers start at once."""
    return PACKING.encode(render_episode(recorded))

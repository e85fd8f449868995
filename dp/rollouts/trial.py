"""Tries an environment out before training, so that errors appear at the start instead of the first rollout."""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from dp.modalities import Spec
from dp.tasks.env import Env

T = TypeVar("T")


def try_out(make_env: Callable[[], Env], obs: Mapping[str, Spec], action: Spec, seed: int, films: bool = False) -> None:
    """Makes an environment, looks at its observations, takes a step of zeros and, if it is to be filmed, a picture.

    Raises:
        ValueError: if the environment fails, naming the method, and if an observation is missing or differs from its
            declared shape or type.
    """
    env = _tried("making it", make_env)
    _tried("reset(seed)", lambda: env.reset(seed))
    seen = _tried("observe()", env.observe)
    for name, spec in obs.items():
        if name not in seen:
            raise ValueError(f"the environment observes {sorted(seen)}, but task.shape_meta.obs declares {name}")
        _compare(name, np.asarray(seen[name]), spec)
    _tried("step(action)", lambda: env.step(np.zeros(action.shape, np.float32)))
    reward, *_ = _tried("reward, success and terminated", lambda: (float(env.reward), env.success, env.terminated))
    if not math.isfinite(reward):
        raise ValueError(f"the environment's reward is {reward} after a step of zeros from seed {seed}")
    _tried("info()", lambda: {name: float(value) for name, value in env.info().items()})
    if films:
        picture = _tried("render()", env.render)
        if getattr(picture, "dtype", None) != np.uint8 or picture.ndim != 3:
            raise ValueError(
                f"the environment's render() returns {type(picture).__name__}, expected uint8 (Y, X, 3), or set "
                "env_runner.n_videos=0"
            )


def _tried(what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:
        raise ValueError(f"the environment fails in {what}: {type(error).__name__}: {error}") from error


def _compare(name: str, seen: np.ndarray, spec: Spec) -> None:
    image = spec.type == "rgb"
    shape = (*spec.shape[1:], 3) if image else spec.shape
    if seen.shape != shape or (seen.dtype == np.uint8) != image:
        wanted = f"uint8 {shape}, channels last" if image else f"float32 {shape}"
        raise ValueError(
            f"the environment's {name} is {seen.dtype} {seen.shape}, but task.shape_meta.obs.{name} declares "
            f"{spec.type} {list(spec.shape)}: observe() must return {wanted}"
        )

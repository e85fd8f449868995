"""Any gymnasium environment as an `Env` (Towers et al. 2024, arXiv 2407.17032)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from jaxtyping import Float, UInt8

RENDER = "render()"
"""Key that stands for the picture that the environment's `render` returns."""

WHOLE = "."
"""Key that stands for the whole observation, if the observation is one array."""

DEFAULT_HZ = 10.0


class GymnasiumEnv:
    """Runs `gymnasium.make(id, **kwargs)`.

    Args:
        obs_names: what `observe` returns.
        id: of a registered environment. "package.module:Name-v0" imports the module first, as gymnasium does.
        kwargs: of the environment, for example {"obs_type": "pixels_agent_pos"}.
        obs: observation name -> the key of the environment's observation dictionary ("a/b" for nested ones), "." for
            an observation that is one array, or "render()" for the rendered picture. A name that is missing here is its
            own key.
        success: key of the step's `info` that says whether the task is solved; None: a task that only rewards,
            and whose success is not defined.
        quantities: keys of `info` whose last value is recorded with every episode.
        control_hz: control steps per second; None: `metadata["render_fps"]`, or 10.

    Raises:
        ValueError: for an unknown id, a key that the observation or `info` lacks, and an action space that is not a
            Box.
    """

    module_arguments: ClassVar[tuple[str, ...]] = ("id",)
    """Arguments that may import a module ("module:name"): a file names only those that its reader trusts."""

    def __init__(
        self,
        obs_names: Sequence[str],
        id: str,
        kwargs: Mapping[str, Any] | None = None,
        obs: Mapping[str, str] | None = None,
        success: str | None = None,
        quantities: Sequence[str] = (),
        control_hz: float | None = None,
    ) -> None:
        try:
            self._env = gymnasium.make(id, render_mode="rgb_array", **(kwargs or {}))
        except (gymnasium.error.Error, ImportError) as error:
            raise ValueError(f"env.id={id} cannot be made: {error}") from error
        space = self._env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"env.id={id} has the action space {space}, expected a one-dimensional Box")
        self._keys = {name: (obs or {}).get(name, name) for name in obs_names}
        self._reward, self._terminated, self._stepped = 0.0, False, False
        self._info: dict[str, Any] = {}
        self._success_key, self._quantities = success, tuple(quantities)
        self.control_hz = float(control_hz or self._env.metadata.get("render_fps") or DEFAULT_HZ)

    def reset(self, seed: int) -> None:
        self._obs, self._info = self._env.reset(seed=seed)
        self._reward, self._terminated, self._stepped = 0.0, False, False

    def step(self, action: Float[np.ndarray, " Da"]) -> None:
        """Actions are clipped to the environment's bounds."""
        space = self._env.action_space
        assert isinstance(space, gymnasium.spaces.Box)
        if action.shape != space.shape:
            raise ValueError(f"the policy's actions have shape {action.shape}, but the environment takes {space.shape}")
        clipped = np.clip(action, space.low, space.high).astype(space.dtype)
        self._obs, reward, terminated, truncated, self._info = self._env.step(clipped)
        self._reward, self._terminated, self._stepped = float(reward), bool(terminated or truncated), True

    def observe(self) -> dict[str, np.ndarray]:
        return {name: _raw(self._env.render() if key == RENDER else self._at(key)) for name, key in self._keys.items()}

    @property
    def reward(self) -> float:
        return self._reward

    @property
    def success(self) -> bool | None:
        return None if self._success_key is None else bool(np.any(self._info_at(self._success_key, 0.0)))

    @property
    def terminated(self) -> bool:
        """Whether the environment says so, or would stop by its own time limit."""
        return self._terminated

    def info(self) -> dict[str, float]:
        return {name: float(self._info_at(name, np.nan)) for name in self._quantities}

    def render(self) -> UInt8[np.ndarray, "Y X 3"]:
        picture = self._env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            got = type(picture).__name__
            raise ValueError(f"the environment renders {got}, expected a picture: set env_runner.n_videos=0")
        return np.ascontiguousarray(picture[..., :3], np.uint8)

    def close(self) -> None:
        self._env.close()

    def _at(self, key: str) -> Any:
        value: Any = self._obs
        for part in () if key == WHOLE else key.split("/"):
            if not isinstance(value, Mapping) or part not in value:
                array = f"one array of shape {np.asarray(value).shape}, which is '{WHOLE}'"
                has = sorted(value) if isinstance(value, Mapping) else array
                raise ValueError(f"env.obs: no observation {key!r}; the environment has {has}")
            value = value[part]
        return value

    def _info_at(self, key: str, at_reset: float) -> Any:
        """The entry `key` of `info`, or `at_reset` if the environment does not report it at its reset."""
        if key not in self._info and self._stepped:
            raise ValueError(f"the environment's info has no {key!r}, only {sorted(self._info)}")
        return self._info.get(key, at_reset)


def _raw(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array if array.dtype == np.uint8 and array.ndim == 3 else array.astype(np.float32)

"""pybullet's functions (Coumans & Bai 2016), bound to an engine of its own."""

from functools import partial
from pathlib import Path
from typing import Any


class Engine:
    """A physics engine without a window. It has pybullet's functions and constants, and about 30 MB of memory.

    Raises:
        ValueError: if pybullet is not installed.
    """

    def __init__(self) -> None:
        self._pybullet = installed()
        self._client = self._pybullet.connect(self._pybullet.DIRECT)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._pybullet, name)
        return partial(found, physicsClientId=self._client) if callable(found) else found

    def __del__(self) -> None:
        if "_client" in self.__dict__ and self._pybullet.isConnected(self._client):
            self._pybullet.disconnect(self._client)


def installed() -> Any:
    """The module pybullet. Raises ValueError if it is not installed."""
    try:
        import pybullet
    except ImportError:
        raise ValueError("Block Push needs pybullet: pip install -e '.[blockpush]'") from None
    return pybullet


def arm_file() -> Path:
    """The description of the xArm6, which comes with pybullet."""
    return Path(installed().__file__).parent / "pybullet_data" / "xarm" / "xarm6_robot.urdf"

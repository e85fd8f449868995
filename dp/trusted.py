"""Which classes a stranger's file may name: ours, of the expected kind, and those of packages that the user trusts."""

import importlib
import inspect
from collections.abc import Collection
from typing import Any

from diffusers import SchedulerMixin
from torch import nn

PARTS: dict[str, tuple[str, type]] = {
    "encoder": ("dp.encoders.", nn.Module),
    "denoiser": ("dp.denoisers.", nn.Module),
    "objective": ("dp.objectives.", nn.Module),
    "scheduler": ("diffusers.", SchedulerMixin),
}
"""Parts of a policy -> the package whose classes a file may name there, and the class to inherit from."""

MAX_SIZE, MAX_LAYERS = 2**16, 64
"""Limits of each whole number and each list among the arguments of a network of ours."""

MAX_VALUES_OBSERVED = 2**24
"""Most numbers in one observation: an image of 2,300 x 2,300 pixels."""


def is_ours(target: object, package: str, kind: type) -> bool:
    """Whether `target` names a class of that package and kind, and not merely something with the right beginning
    ("dp.rollouts.pool.os.system" has it)."""
    if not isinstance(target, str) or not target.startswith(package):
        return False
    found = imported(target)
    if not inspect.isclass(found) or not found.__module__.startswith(package.split(".")[0]):
        return False
    return found is not SchedulerMixin and (kind is object or issubclass(found, kind))


def is_from(target: object, trusted: Collection[str]) -> bool:
    """Whether `target` is defined in one of these packages: a name that they import from elsewhere is not.

    Raises ValueError if a package is trusted but cannot be imported.
    """
    if not isinstance(target, str) or target.partition(".")[0] not in trusted:
        return False
    found = imported(target)
    if found is None:
        raise ValueError(
            f"{target} cannot be imported, although trust names its package: install it (pip install -e), or put its "
            "folder on the path (PYTHONPATH=FOLDER)"
        )
    return callable(found) and getattr(found, "__module__", "").partition(".")[0] == target.partition(".")[0]


def imported(target: str) -> Any:
    """What `target` names; None if there is no such thing."""
    module_name, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError):
        return None

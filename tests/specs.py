"""`Spec`s from shapes alone, and PushT's demonstrations with them."""

from collections.abc import Mapping, Sequence
from typing import Any

from dp.modalities import Spec
from dp.tasks.pusht.demonstrations import PushTDemonstrations


def specs(shapes: Mapping[str, Sequence[int]] | None = None, /, **named: Sequence[int]) -> dict[str, Spec]:
    """By name, from a mapping or as name=shape. Three dimensions are an image, everything else is low_dim."""
    given = {**(shapes or {}), **named}
    return {name: Spec("rgb" if len(shape) == 3 else "low_dim", tuple(shape), name) for name, shape in given.items()}


def pusht_demonstrations(shapes: Mapping[str, Sequence[int]], **settings: Any) -> PushTDemonstrations:
    return PushTDemonstrations(specs(shapes), specs({"action": (2,)})["action"], **settings)

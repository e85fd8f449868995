"""Ranges of numbers for annotations, which declare what an argument accepts.

Upper limits are far above what anybody needs. They stop a typo, or a stranger's file, before it takes all memory.
"""

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Interval, Len

Count = Annotated[int, Interval(ge=0, le=10**9)]
Positive = Annotated[int, Interval(ge=1, le=10**9)]

WindowSteps = Annotated[int, Interval(ge=1, le=1024)]
"""Steps of a window, or noises drawn for one."""

DiffusionSteps = Annotated[int, Interval(ge=1, le=10_000)]

Width = Annotated[int, Interval(ge=1, le=65_536)]
"""Features of a layer, rows of a batch, pixels of a side."""

Widths = Annotated[Sequence[Width], Len(1, 12)]
"""Widths of the layers or levels of a network."""

Workers = Annotated[int, Interval(ge=0, le=1024)]
"""Processes or threads."""

Seed = Annotated[int, Interval(ge=0, le=2**63 - 1)]
"""Seeds of torch's and numpy's generators."""

EnvSeed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
"""Seeds of environments: gymnasium and numpy's older generator take 32 bits."""

Size = Annotated[float, Interval(gt=0)]
"""A finite number above 0."""

Rate = Annotated[float, Interval(ge=0, le=10**9)]
"""Learning rate, weight decay and the like of an optimizer."""

Share = Annotated[float, Interval(ge=0, le=1)]

Dropout = Annotated[float, Interval(ge=0, lt=1)]
"""Probability that a feature is left out."""

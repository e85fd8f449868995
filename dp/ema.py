"""Exponential moving average of a policy's weights with a power schedule."""

import copy
import functools
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from dp.limits import Share, Size

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """Keeps `model`, a copy of the trained module with averaged weights. Buffers (BatchNorm's statistics) are copied.

    After n updates the decay is `clip(1 - (1 + (n - 1) / inv_gamma) ** -power, min_decay, max_decay)`. The first two
    decays are 0 whatever min_decay is, so that the average forgets the initial weights. This is the schedule of Chi et
    al.'s `EMAModel` (after @crowsonkb). Unlike there, the counter is saved, so a resumed run continues the schedule.
    """

    def __init__(
        self,
        model: Model,
        power: Size = 0.75,
        inv_gamma: Size = 1.0,
        min_decay: Share = 0.0,
        max_decay: Share = 0.9999,
    ) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.power, self.inv_gamma = power, inv_gamma
        self.min_decay, self.max_decay = min_decay, max_decay
        self.num_updates = 0
        self._tensors_of = functools.lru_cache(maxsize=2)(_tensors_of)  # of the average, and of what it follows

    def decay(self) -> float:
        """The decay of the next update."""
        step = self.num_updates - 1
        if step <= 0:
            return 0.0
        decay = 1 - (1 + step / self.inv_gamma) ** -self.power
        return min(max(decay, self.min_decay), self.max_decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Moves the average towards `model`: one fused launch per device and dtype, no host sync.

        The tensors of both are listed at the first update, because walking the modules takes longer than averaging
        on a GPU. Parameters must stay the same objects, as any optimizer needs them to; buffers may be replaced.
        """
        (average, buffers), (weights, new_buffers) = self._tensors_of(self.model), self._tensors_of(model)
        torch._foreach_lerp_(average, weights, 1 - self.decay())
        if buffers:
            torch._foreach_copy_([of[name] for of, name in buffers], [of[name] for of, name in new_buffers])
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.num_updates = state["num_updates"]


def _tensors_of(model: nn.Module) -> tuple[list[Tensor], list[tuple[dict[str, Tensor], str]]]:
    """The parameters of `model`, and where its buffers are: (the dict of a submodule, a name in it)."""
    buffers = [(m._buffers, name) for m in model.modules() for name, buffer in m._buffers.items() if buffer is not None]
    return list(model.parameters()), cast(list[tuple[dict[str, Tensor], str]], buffers)

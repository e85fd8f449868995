"""What a denoising loop computes once is what it would compute each time, and nothing outlives the loop."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from dp.denoisers import UNet1d
from dp.kernels import Conv1d, memoize, sampling_loop
from dp.kernels.memo import _results


class Counting:
    def __init__(self, compute: Callable[..., Tensor]) -> None:
        self.compute, self.calls = compute, 0

    def __call__(self, *given: Tensor) -> Tensor:
        self.calls += 1
        return self.compute(*given)


def test_a_loop_computes_once_for_each_function_and_its_tensors() -> None:
    double, a = Counting(lambda x: 2 * x), torch.ones(3)
    with sampling_loop():
        assert memoize(double, a) is memoize(double, a)
        assert memoize(double, a.clone()) is not memoize(double, a)  # equal, but another tensor
        assert torch.equal(memoize(Counting(lambda x: 3 * x), a), 3 * a)
    assert double.calls == 2


def test_nothing_outlives_its_loop() -> None:
    double, a = Counting(lambda x: 2 * x), torch.ones(3)
    with sampling_loop():
        memoize(double, a)
    memoize(double, a)
    with sampling_loop():
        memoize(double, a)
    assert double.calls == 3


@pytest.mark.parametrize("layer", ["convolution", "film"])
def test_a_loop_keeps_what_was_made_of_weights_and_outside_they_may_change(layer: str) -> None:
    torch.manual_seed(0)
    network: nn.Module
    given: list[Tensor]
    if layer == "convolution":  # its weights, transformed for `winograd`
        network, given = Conv1d(4, 4, 3, padding=1), [torch.randn(8, 64, 4)]
        weight = network.get_parameter("weight")
    else:  # what the observation adds to FiLM's scales and biases
        network, given = (
            UNet1d(2, 12, [16, 32]),
            [torch.randn(8, 16, 2), torch.arange(8)[:, None], torch.randn(8, 2, 6)],
        )
        weight = network.get_parameter("mid_modules.0.cond_encoder.1.bias")
    with torch.no_grad():
        with sampling_loop():
            first = network(*given)
            weight.add_(1)  # what must not be done: here it shows that the result was kept
            assert torch.equal(network(*given), first)
        changed = network(*given)
        assert not torch.equal(changed, first)
        with sampling_loop():
            assert torch.equal(network(*given), changed)


@pytest.mark.parametrize("cond_merge", ["concat", "add"])
def test_another_condition_in_the_same_loop_is_another_result(cond_merge: Literal["concat", "add"]) -> None:
    """As classifier-free guidance needs it."""
    unet = UNet1d(2, 12, [16, 32], cond_merge=cond_merge)
    x, k = torch.randn(3, 16, 2), torch.zeros(3, 1).long()
    a, b = torch.randn(3, 2, 6), torch.randn(3, 2, 6)
    with torch.no_grad():
        expected = [unet(x, k, cond) for cond in (a, b)]
        with sampling_loop():
            for _ in range(2):
                assert [torch.equal(unet(x, k, c), y) for c, y in zip((a, b), expected, strict=True)] == [True, True]


@pytest.mark.parametrize("cond_merge", ["concat", "add"])
def test_later_steps_keep_nothing_more(cond_merge: Literal["concat", "add"]) -> None:
    unet = UNet1d(2, 12, [16, 32], cond_merge=cond_merge)
    x, cond = torch.randn(3, 16, 2), torch.randn(3, 2, 6)
    kept = []
    with torch.no_grad(), sampling_loop():
        for k in range(3):
            unet(x, torch.full((3, 1), k), cond)
            kept.append(len(_results.get() or {}))
    assert kept[0] > 0
    assert kept == kept[:1] * 3

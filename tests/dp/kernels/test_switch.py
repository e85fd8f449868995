"""One switch turns every kernel off, and the networks compute the same without them, up to rounding."""

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from dp import kernels
from dp.denoisers import UNet1d
from dp.kernels import conv1d as gemm
from dp.kernels import linear, memo, mish, norm, switch, winograd
from dp.kernels.conv1d import ConvTranspose1d

KERNELS = {
    "winograd": (winograd, "conv1d"),
    "panels": (gemm, "_panels"),
    "double": (ConvTranspose1d, "_double"),
    "mish": (mish._Mish, "apply"),
    "norm": (norm._GroupNorm, "apply"),
    "split": (linear.ConcatLinear, "_of_second"),
}
"""What a network must call, or must not, with the owner and name by which it does."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kernel was called."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            counts[name] += 1
            return function(*args)

        return call

    for name, (owner, attribute) in KERNELS.items():
        call = counted(name, getattr(owner, attribute))
        monkeypatch.setattr(owner, attribute, staticmethod(call) if attribute == "apply" else call)
    return counts


def network(cond_dim: int = 12) -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(2, cond_dim, [16, 32])


def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 16, 2), torch.linspace(0, 99, batch).long()[:, None], torch.randn(batch, 2, 6)


def sampled(unet: UNet1d, batch: int) -> Tensor:
    x, _, cond = inputs(batch)
    scheduler = DDIMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    scheduler.set_timesteps(8)
    with torch.no_grad(), kernels.sampling_loop():
        for k in scheduler.timesteps.tolist():
            x = scheduler.step(unet(x, torch.full((batch, 1), k), cond), k, x).prev_sample
    return x


@pytest.mark.parametrize("batch", [3, 16])
def test_the_unet_trains_the_same_with_torchs_operators(batch: int) -> None:
    unet = network()

    def outputs_and_gradients() -> list[Tensor]:
        y = unet(*inputs(batch))
        return [y, *torch.autograd.grad(y.square().mean(), list(unet.parameters()))]

    ours = outputs_and_gradients()
    with kernels.use("reference"):
        theirs = outputs_and_gradients()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [3, 16])
def test_the_unet_samples_the_same_with_torchs_operators(batch: int) -> None:
    unet = network().eval()
    ours = sampled(unet, batch)
    with kernels.use("reference"):
        theirs = sampled(unet, batch)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_kernels_are_called_unless_they_are_switched_off(calls: Counter[str]) -> None:
    unet = network()
    for batch in (3, 16):
        unet(*inputs(batch))
        sampled(unet, batch)
    assert calls.keys() == KERNELS.keys()
    before = calls.copy()
    with kernels.use("reference"):
        for batch in (3, 16):
            unet(*inputs(batch))
            sampled(unet, batch)
    assert calls == before


def test_nothing_is_memoized_while_kernels_are_off() -> None:
    with kernels.use("reference"), kernels.sampling_loop():
        x = torch.ones(2)
        assert kernels.memoize(torch.neg, x) is not kernels.memoize(torch.neg, x)
        assert memo._results.get() == {}


def test_the_switch_goes_back_to_what_it_was_also_after_an_error() -> None:
    with kernels.use("reference"):
        with kernels.use("auto"):
            assert switch.enabled()
        assert not switch.enabled()
    assert switch.enabled()
    with contextlib.suppress(KeyError), kernels.use("reference"):
        raise KeyError
    assert switch.enabled()


def test_kernels_are_active_on_cpus_only() -> None:
    assert switch.active(torch.zeros(1))
    assert not switch.active(torch.zeros(1, device="meta"))
    with kernels.use("reference"):
        assert not switch.active(torch.zeros(1))


def test_another_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="kernels=fast, expected auto or reference"):
        kernels.use("fast")
    assert switch.enabled()

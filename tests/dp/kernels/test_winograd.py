"""Winograd's convolutions compute what torch's do, with fewer multiplications, where they are meant to be used."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dp.kernels import BLOCK, winograd


def assert_close_with_gradients(ours: Tensor, theirs: Tensor, x: Tensor, weight: Tensor) -> None:
    towards = torch.randn_like(theirs)
    pairs = zip(
        (ours, *torch.autograd.grad(ours, (x, weight), towards)),
        (theirs, *torch.autograd.grad(theirs, (x, weight), towards)),
        strict=True,
    )
    for a, b in pairs:
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kernel", [2, 3, 5, 7])
@pytest.mark.parametrize("length", [7, 8, 9, 10, 11, 16])
def test_values_and_gradients_are_torchs(length: int, kernel: int, padded: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(length, 40, 24, requires_grad=True)
    weight = torch.randn(16, 24, kernel, requires_grad=True)
    padding = kernel // 2 if padded else 0
    ours = winograd.conv1d(x, weight.permute(2, 1, 0), padding)
    theirs = F.conv1d(x.permute(1, 2, 0), weight, padding=padding).permute(2, 0, 1)
    assert_close_with_gradients(ours, theirs, x, weight)


@pytest.mark.parametrize(("height", "width"), [(3, 3), (6, 6), (4, 5)])
@pytest.mark.parametrize(("kernel", "padding"), [(3, 1), (3, 0), (5, 2)])
def test_values_and_gradients_of_images_are_torchs(height: int, width: int, kernel: int, padding: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 8, height, width).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 8, kernel, kernel, requires_grad=True)
    ours, theirs = winograd.conv2d(x, weight, padding), F.conv2d(x, weight, padding=padding)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_close_with_gradients(ours, theirs, x, weight)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_sequences_shorter_than_the_kernel_work(length: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(length, 40, 6), torch.randn(10, 6, 5)
    theirs = F.conv1d(x.permute(1, 2, 0), weight, padding=2).permute(2, 0, 1)
    torch.testing.assert_close(winograd.conv1d(x, weight.permute(2, 1, 0), 2), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [1024, 1000])
def test_wide_layers_compute_the_same_in_sampling_as_in_training(width: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 16, 40), torch.randn(5, 40, width)
    trained = winograd.conv1d(x, weight, 2)
    with torch.no_grad():
        sampled = winograd.conv1d(x, weight, 2)
        torch.testing.assert_close(sampled[:, :BLOCK], winograd.conv1d(x[:, :BLOCK], weight, 2), atol=0, rtol=0)
    torch.testing.assert_close(sampled, trained, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("kernel", "saved"), [(3, 2), (5, 2.5)])
@pytest.mark.parametrize("length", [4, 8, 16])
def test_at_least_half_of_the_multiplications_are_saved(length: int, kernel: int, saved: float) -> None:
    _, interpolate, _ = winograd.matrices(length, kernel, kernel // 2)
    n_products = interpolate.shape[1]
    assert n_products * saved == length * kernel


def test_used_in_float32_on_a_cpu_for_enough_sequences() -> None:
    x = torch.zeros(16, 64, 8)
    assert winograd.pays(x, 3)
    assert not winograd.pays(x, 1)
    assert not winograd.pays(x[:, :1], 3)
    assert not winograd.pays(x.bfloat16(), 3)
    assert not winograd.pays(x.to("meta"), 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert not winograd.pays(x, 3)


def test_used_for_small_images_in_training() -> None:
    x = torch.zeros(64, 8, 6, 6)
    assert winograd.pays_2d(x, 3)
    assert not winograd.pays_2d(x, 1)
    assert not winograd.pays_2d(x[:2], 3)
    assert not winograd.pays_2d(torch.zeros(64, 8, 11, 11), 3)
    with torch.no_grad():
        assert not winograd.pays_2d(x, 3)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(("length", "channels"), [(4, 256), (8, 128), (16, 64), (16, 2)])
def test_a_sequence_does_not_depend_on_those_beside_it(length: int, channels: int, kernel: int) -> None:
    """In multiples of a rollout's padding, to the bit: otherwise scores would depend on `n_envs`."""
    x, weight = torch.randn(length, 7 * BLOCK, channels), torch.randn(kernel, channels, 64)
    assert winograd.pays(x[:, :BLOCK], kernel)
    together = winograd.conv1d(x, weight, kernel // 2)
    for n in range(BLOCK, 7 * BLOCK, BLOCK):
        assert torch.equal(winograd.conv1d(x[:, :n].contiguous(), weight, kernel // 2), together[:, :n])

"""Mish equals torch's, value and gradient, wherever its input lies."""

import pytest
import torch
import torch.nn.functional as F

from dp.kernels import Mish


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_values_and_gradients_are_torchs(dtype: torch.dtype, tolerance: float) -> None:
    x = torch.cat([torch.linspace(-30, 30, 2001), torch.tensor([-1e4, -100.0, 19.999, 20.001, 88.0, 100.0, 1e4])])
    x = x.to(dtype)[:, None].requires_grad_()  # a batch: of a few, F.mish itself is the faster
    grad = torch.linspace(-2, 3, len(x)).to(dtype)[:, None]
    ours, theirs = Mish()(x), F.mish(x)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=tolerance, atol=2 * tolerance)


def test_input_and_incoming_gradient_are_left_as_they_are() -> None:
    x = torch.randn(9, 7, requires_grad=True)
    grad = torch.randn(9, 7)
    before = x.detach().clone(), grad.clone()
    Mish()(x).backward(grad)
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(grad, before[1])


def test_non_finite_values_stay_visible() -> None:
    assert Mish()(torch.full((8, 1), float("nan"))).isnan().all()
    assert Mish()(torch.full((8, 1), float("inf"))).eq(float("inf")).all()

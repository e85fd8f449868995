"""GroupNorm over (L, B, C) computes what torch's does."""

import pytest
import torch
from torch import nn

from dp.kernels import BLOCK, ROWS, GroupNorm


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("batch", [BLOCK - 1, BLOCK, 40])
@pytest.mark.parametrize(("mean", "bound"), [(1, 2e-6), (300, 1e-4)])  # squares of 300 would leave no variance
def test_values_and_gradients_are_torchs(length: int, batch: int, mean: float, bound: float) -> None:
    torch.manual_seed(0)
    torchs, ours = nn.GroupNorm(4, 24).double(), GroupNorm(4, 24)
    nn.init.normal_(torchs.weight)
    nn.init.normal_(torchs.bias)
    ours.load_state_dict(torchs.state_dict())
    x = (3 * torch.randn(length, batch, 24) + mean).requires_grad_()
    theirs_x = x.detach().double().requires_grad_()
    y, theirs_y = ours(x), torchs(theirs_x.permute(1, 2, 0)).permute(2, 0, 1)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), y, atol=0, rtol=0)
    towards = torch.randn_like(y)
    y.backward(towards)
    theirs_y.backward(towards.double())
    gradients = zip((x, *ours.parameters()), (theirs_x, *torchs.parameters()), strict=True)
    for a, b in [(y, theirs_y), *((a.grad, b.grad) for a, b in gradients)]:
        assert a.shape == b.shape
        assert (a - b).abs().max() < bound * b.abs().max()


@torch.no_grad()
def test_a_sequence_does_not_depend_on_those_beside_it() -> None:
    """In multiples of a rollout's padding, to the bit: otherwise scores would depend on `n_envs`."""
    norm, x = GroupNorm(8, 256), torch.randn(16, 7 * ROWS, 256)
    together = norm(x)
    for n in range(ROWS, 7 * ROWS, ROWS):
        assert torch.equal(norm(x[:, :n].contiguous()), together[:, :n])


def test_what_follows_lies_in_order() -> None:
    x = torch.randn(4, 64, 24, requires_grad=True)
    y = GroupNorm(4, 24)(x)
    assert y.is_contiguous()
    y.sum().backward()
    assert x.grad.is_contiguous()

"""The GEMM convolutions compute what torch's do, from the same weights."""

import copy

import pytest
import torch
from torch import nn

from dp.denoisers.conv1d import Conv1d, GroupNorm1d, Upsample1d


def assert_same(ours: nn.Module, torchs: nn.Module, x: torch.Tensor) -> None:
    """Equal outputs, as in training and as in sampling, and equal gradients, of the input and of every parameter."""
    ours.load_state_dict(torchs.state_dict())
    ours_x, torchs_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours_y, torchs_y = ours(ours_x), torchs(torchs_x.permute(1, 2, 0)).permute(2, 0, 1)
    torch.testing.assert_close(ours_y, torchs_y, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), torchs_y, atol=1e-5, rtol=1e-5)
    towards = torch.randn_like(torchs_y)
    (ours_y * towards).sum().backward()
    (torchs_y * towards).sum().backward()
    torch.testing.assert_close(ours_x.grad, torchs_x.grad, atol=1e-5, rtol=1e-5)
    theirs = dict(torchs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("length", [8, 13])
@pytest.mark.parametrize("batch", [3, 64])  # few, and enough for `winograd`
def test_conv_equals_torchs(kernel_size: int, stride: int, length: int, batch: int) -> None:
    torch.manual_seed(0)
    sizes = {"kernel_size": kernel_size, "stride": stride, "padding": kernel_size // 2}
    assert_same(Conv1d(6, 10, **sizes), nn.Conv1d(6, 10, **sizes), torch.randn(length, batch, 6))


@pytest.mark.parametrize("length", [1, 2, 8])
def test_upsample_equals_torchs_transposed_convolution(length: int) -> None:
    torch.manual_seed(0)
    assert_same(Upsample1d(6), nn.ConvTranspose1d(6, 6, 4, 2, 1), torch.randn(length, 3, 6))


def test_group_norm_equals_torchs() -> None:
    torch.manual_seed(0)
    reference = nn.GroupNorm(4, 8)
    nn.init.normal_(reference.weight)
    nn.init.normal_(reference.bias)
    assert_same(GroupNorm1d(4, 8), reference, 3 * torch.randn(7, 3, 8) + 1)


def test_weights_have_torchs_names_and_shapes() -> None:
    for ours, torchs in (
        (Conv1d(6, 10, 3, padding=1), nn.Conv1d(6, 10, 3, padding=1)),
        (Upsample1d(6), nn.ConvTranspose1d(6, 6, 4, 2, 1)),
    ):
        assert {k: v.shape for k, v in ours.state_dict().items()} == {
            k: v.shape for k, v in torchs.state_dict().items()
        }


def test_weights_start_with_torchs_values() -> None:
    torch.manual_seed(0)
    ours = Conv1d(6, 10, 3)
    torch.manual_seed(0)
    torch.testing.assert_close(ours.weight, nn.Conv1d(6, 10, 3).weight, atol=0, rtol=0)


def test_copies_and_loaded_weights_stay_in_gemm_order() -> None:
    conv = Conv1d(6, 10, 3)
    loaded = Conv1d(6, 10, 3)
    loaded.load_state_dict({name: w.contiguous() for name, w in conv.state_dict().items()})
    for each in (conv, copy.deepcopy(conv), loaded):
        assert each.weight.permute(2, 1, 0).is_contiguous()
        flat = each.weight.permute(2, 1, 0).flatten(0, 1)
        assert flat.data_ptr() == each.weight.data_ptr()  # a view: nothing is copied in `forward`
    up = Upsample1d(6)
    for each in (up, copy.deepcopy(up)):
        assert each.weight.permute(2, 0, 1).is_contiguous()

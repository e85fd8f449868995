"""The GEMM convolutions compute what torch's do, from the same weights."""

import copy

import pytest
import torch
from torch import nn

from dp.kernels import Conv1d, ConvTranspose1d


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
        grad = parameter.grad.permute(ours.to_torch) if name == "weight" else parameter.grad
        torch.testing.assert_close(grad, theirs[name].grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("length", [8, 13])
@pytest.mark.parametrize("batch", [3, 64])  # few, and enough for `winograd`
def test_conv_equals_torchs(kernel_size: int, stride: int, length: int, batch: int) -> None:
    torch.manual_seed(0)
    sizes = {"kernel_size": kernel_size, "stride": stride, "padding": kernel_size // 2}
    assert_same(Conv1d(6, 10, **sizes), nn.Conv1d(6, 10, **sizes), torch.randn(length, batch, 6))


@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (6, 4)])
@pytest.mark.parametrize("sizes", [(3, 1, 0), (4, 2, 1), (4, 2, 0), (5, 3, 2)])
def test_any_transposed_convolution_equals_torchs(sizes: tuple[int, int, int], inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    torchs = nn.ConvTranspose1d(inputs, outputs, *sizes)
    assert_same(ConvTranspose1d(inputs, outputs, *sizes), torchs, torch.randn(7, 3, inputs))


@pytest.mark.parametrize("length", [1, 2, 8])
def test_upsample_equals_torchs_transposed_convolution(length: int) -> None:
    torch.manual_seed(0)
    assert_same(ConvTranspose1d(6, 6, 4, 2, 1), nn.ConvTranspose1d(6, 6, 4, 2, 1), torch.randn(length, 3, 6))


@pytest.mark.parametrize(
    ("layer", "theirs"),
    [
        (Conv1d(6, 10, 3, padding=1), nn.Conv1d(6, 10, 3, padding=1)),
        (ConvTranspose1d(6, 6, 4, 2, 1), nn.ConvTranspose1d(6, 6, 4, 2, 1)),
    ],
)
def test_state_dicts_are_torchs(layer: nn.Module, theirs: nn.Module) -> None:
    """Names, shapes and values, whichever layer they are loaded into."""
    expected = copy.deepcopy(theirs.state_dict())
    layer.load_state_dict(expected)
    theirs.reset_parameters()
    theirs.load_state_dict(layer.state_dict())
    for each in (layer, copy.deepcopy(layer)):
        assert each.weight.is_contiguous()
        flat = each.weight.flatten(0, 1)
        assert flat.data_ptr() == each.weight.data_ptr()  # a view: nothing is copied in `forward`
    for each in (layer, copy.deepcopy(layer), theirs):
        torch.testing.assert_close(each.state_dict(), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("layer", "theirs"),
    [
        (Conv1d(32, 512, 5), nn.Conv1d(32, 512, 5)),
        (ConvTranspose1d(128, 128, 4, 2, 1), nn.ConvTranspose1d(128, 128, 4, 2, 1)),
    ],
)
def test_weights_are_drawn_as_torch_draws_them(layer: nn.Module, theirs: nn.Module) -> None:
    """Uniformly, between the same bounds, and again when they are reset."""
    torch.manual_seed(0)
    layer.reset_parameters()
    theirs.reset_parameters()
    for name, expected in theirs.state_dict().items():
        drawn = layer.state_dict()[name]
        torch.testing.assert_close(drawn.abs().max(), expected.abs().max(), atol=0, rtol=0.05)
        torch.testing.assert_close(drawn.std(), expected.std(), atol=0, rtol=0.15)


@pytest.mark.parametrize("layer", [Conv1d(6, 10, 3, padding=1), ConvTranspose1d(6, 6, 4, 2, 1)])
def test_adamw_copies_no_gradient(layer: nn.Module) -> None:
    """On a CPU its fused kernel makes gradients contiguous, to no end: a sixth of a large network's training step."""
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(torch.randn(8, 3, 6)).sum().backward()
    with torch.profiler.profile() as profile:
        optimizer.step()
    called = {event.name for event in profile.events()}
    assert "aten::_fused_adamw_" in called
    assert "aten::clone" not in called


def test_loading_a_state_without_a_weight_names_it() -> None:
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        Conv1d(6, 10, 3).load_state_dict({"bias": torch.zeros(10)})

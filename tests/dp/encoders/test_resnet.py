"""The paper's encoder, and loading pretrained weights from a local file."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from dp.encoders import ResNetEncoder
from dp.encoders.resnet import SpatialSoftmax
from dp.kernels import winograd

SHAPES = {"image": (3, 96, 96), "agent_pos": (2,)}


def test_the_papers_encoder_makes_64_features_and_the_agents_position() -> None:
    encoder = ResNetEncoder(SHAPES).eval()
    assert encoder.out_dim == 66
    with torch.no_grad():
        features = encoder({"image": torch.rand(3, 2, 3, 96, 96), "agent_pos": torch.rand(3, 2, 2)})
    assert features.shape == (3, 2, 66)


def test_group_norm_of_sixteen_channels_each_replaces_every_batch_norm() -> None:
    modules = list(ResNetEncoder(SHAPES).modules())
    assert not [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in modules if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(m.num_groups == m.num_channels / 16 for m in norms)


def test_winograd_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder, calls = ResNetEncoder(SHAPES), []
    obs = {"image": torch.rand(16, 2, 3, 96, 96), "agent_pos": torch.rand(16, 2, 2)}
    conv2d = winograd.conv2d
    monkeypatch.setattr(winograd, "conv2d", lambda *args: calls.append(args) or conv2d(*args))

    def features_and_gradients() -> list[Tensor]:
        torch.manual_seed(1)  # the crops
        features = encoder(obs)
        return [features, *torch.autograd.grad(features.square().sum(), list(encoder.parameters()))]

    ours = features_and_gradients()
    assert len(calls) == 6  # all with stride 1 of the last two stages
    monkeypatch.setattr(winograd, "pays_2d", lambda *_: False)
    for a, b in zip(ours, features_and_gradients(), strict=True):
        assert (a - b).norm() < 1e-3 * b.norm() + 1e-5  # some gradients are 0
    assert len(calls) == 6


def test_spatial_softmax_of_a_single_peak_is_its_place() -> None:
    softmax = SpatialSoftmax(channels=2, n_keypoints=2)
    with torch.no_grad():
        softmax.heatmaps.weight.copy_(torch.eye(2)[:, :, None, None])
        softmax.heatmaps.bias.zero_()
        maps = torch.zeros(1, 2, 3, 5)
        maps[0, 0, 0, 3] = 1000  # top row, fourth of five columns
        maps[0, 1, 2, 0] = 1000  # bottom row, first column
        keypoints = softmax(maps)
    torch.testing.assert_close(keypoints, torch.tensor([[0.5, -1.0, -1.0, 1.0]]))


def test_spatial_softmax_of_a_flat_map_is_the_centre() -> None:
    with torch.no_grad():
        torch.testing.assert_close(SpatialSoftmax(2, 3)(torch.zeros(1, 2, 3, 5)), torch.zeros(1, 6))


def test_local_torchvision_weights_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18().state_dict()  # with BatchNorm and the classifier, as torchvision publishes it
    torch.save(state, tmp_path / "resnet18.pth")
    encoder = ResNetEncoder(SHAPES, weights=str(tmp_path / "resnet18.pth"))
    ours = [m.weight for m in encoder.backbone[0].modules() if isinstance(m, nn.Conv2d)]
    theirs = [w for w in state.values() if w.ndim == 4]
    assert len(ours) == 20
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder\.weights=.*nowhere\.pth is not a file"):
        ResNetEncoder(SHAPES, weights=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("content", [{"conv1.weight": torch.zeros(64, 3, 7, 7)}, {"model": {}}, [1, 2]])
def test_weights_of_another_network_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold torchvision's resnet18"):
        ResNetEncoder(SHAPES, weights=str(tmp_path / "other.pth"))


def test_a_file_that_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.pth does not hold torchvision's resnet18"):
        ResNetEncoder(SHAPES, weights=str(tmp_path / "page.pth"))

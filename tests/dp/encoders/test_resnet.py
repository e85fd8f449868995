"""The paper's encoder, and loading pretrained weights from a local file."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from dp.encoders import ResNetEncoder
from dp.encoders.resnet import SpatialSoftmax, trunk
from dp.kernels import use, winograd
from tests.specs import specs

SPECS = specs(image=(3, 96, 96), agent_pos=(2,))


def test_the_papers_encoder_makes_64_features_and_the_agents_position() -> None:
    encoder = ResNetEncoder(SPECS).eval()
    assert encoder.out_dim == 66
    with torch.no_grad():
        features = encoder({"image": torch.rand(3, 2, 3, 96, 96), "agent_pos": torch.rand(3, 2, 2)})
    assert features.shape == (3, 2, 66)


def test_group_norm_of_sixteen_channels_each_replaces_every_batch_norm() -> None:
    modules = list(ResNetEncoder(SPECS).modules())
    assert not [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in modules if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(m.num_groups == m.num_channels / 16 for m in norms)


def visual_core(image: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The reference implementation's forward pass (robomimic's VisualCore as Chi et al. configure it), in plain calls.

    ResNet-18 with GroupNorm, spatial softmax over 32 keypoints, linear layer, ReLU.
    image: (N, 3, 84, 84) in [-1, 1].
    """
    w = weights

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, x.shape[1] // 16, w[f"{name}.weight"], w[f"{name}.bias"])

    def basic_block(x: Tensor, name: str, stride: int) -> Tensor:
        h = F.relu(norm(F.conv2d(x, w[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
        h = norm(F.conv2d(h, w[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stride == 2:
            x = norm(F.conv2d(x, w[f"{name}.downsample.0.weight"], stride=2), f"{name}.downsample.1")
        return F.relu(h + x)

    x = F.relu(norm(F.conv2d(image, w["0.0.weight"], stride=2, padding=3), "0.1"))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in range(4):
        x = basic_block(x, f"0.{4 + stage}.0", stride=1 if stage == 0 else 2)
        x = basic_block(x, f"0.{4 + stage}.1", stride=1)
    maps = F.conv2d(x, w["1.0.heatmaps.weight"], w["1.0.heatmaps.bias"])
    attention = maps.flatten(2).softmax(-1)  # (N, 32, Y X)
    rows, columns = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in x.shape[2:]), indexing="ij")
    keypoints = torch.stack([(attention * place.flatten()).sum(-1) for place in (columns, rows)], dim=-1)
    return F.relu(F.linear(keypoints.flatten(1), w["1.1.weight"], w["1.1.bias"]))


def test_equals_the_reference_implementations_forward_pass() -> None:
    torch.manual_seed(0)
    encoder = ResNetEncoder(SPECS, final_relu=True).eval()
    for parameter in encoder.parameters():  # also where torchvision begins with ones and zeros
        nn.init.normal_(parameter, std=0.1)
    obs = {"image": torch.rand(3, 2, 3, 96, 96), "agent_pos": torch.rand(3, 2, 2)}
    with torch.no_grad():
        features = encoder(obs)
        cropped = obs["image"].flatten(0, 1)[..., 6:90, 6:90] * 2 - 1
        expected = visual_core(cropped, encoder.backbones["image"].state_dict()).unflatten(0, (3, 2))
    torch.testing.assert_close(features[..., :64], expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(features[..., 64:], obs["agent_pos"])
    assert 0.1 < (features[..., :64] == 0).float().mean() < 0.9


def test_the_final_relu_adds_no_parameters_and_is_off_by_default() -> None:
    torch.manual_seed(0)
    without = ResNetEncoder(SPECS).eval()
    torch.manual_seed(0)
    relu = ResNetEncoder(SPECS, final_relu=True).eval()
    relu.load_state_dict(without.state_dict())
    obs = {"image": torch.rand(1, 2, 3, 96, 96), "agent_pos": torch.rand(1, 2, 2)}
    with torch.no_grad():
        features = without(obs)[..., :64]
        assert features.min() < 0
        assert torch.equal(relu(obs)[..., :64], features.relu())


def test_torchs_operators_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder, calls = ResNetEncoder(SPECS), []
    obs = {"image": torch.rand(16, 2, 3, 96, 96), "agent_pos": torch.rand(16, 2, 2)}
    conv2d = winograd.conv2d
    monkeypatch.setattr(winograd, "conv2d", lambda *args: calls.append(args) or conv2d(*args))

    def features_and_gradients() -> list[Tensor]:
        torch.manual_seed(1)  # the crops
        features = encoder(obs)
        return [features, *torch.autograd.grad(features.square().sum(), list(encoder.parameters()))]

    ours = features_and_gradients()
    assert len(calls) == 6  # all with stride 1 of the last two stages
    with use("reference"):
        theirs = features_and_gradients()
    assert len(calls) == 6
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() < 1e-3 * b.norm() + 1e-5  # some gradients are 0


def test_batch_norm_is_kept_by_option_and_its_statistics_move_in_training() -> None:
    torch.manual_seed(0)
    encoder = ResNetEncoder(specs(image=(3, 64, 96)), crop=None, norm="batch")
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not [m for m in encoder.modules() if isinstance(m, nn.GroupNorm)]
    before = norms[0].running_mean.clone()
    encoder.train()({"image": torch.rand(2, 2, 3, 64, 96)})
    assert not torch.equal(norms[0].running_mean, before)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ValueError, match=r"norm=layer, expected group or batch"):
        trunk("layer", None)


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
    encoder = ResNetEncoder(SPECS, weights=str(tmp_path / "resnet18.pth"))
    ours = [m.weight for m in encoder.backbones["image"][0].modules() if isinstance(m, nn.Conv2d)]
    theirs = [w for w in state.values() if w.ndim == 4]
    assert len(ours) == 20
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_torchvisions_network_with_its_batch_norm_is_loaded_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18()
    for m in resnet.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight)
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    ours = trunk("batch", str(tmp_path / "resnet18.pth")).eval()
    theirs = nn.Sequential(*list(resnet.eval().children())[:-2])
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-4, rtol=1e-4)


def test_batch_norm_without_its_entries_is_refused(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save({name: w for name, w in state.items() if w.ndim == 4}, tmp_path / "convolutions.pth")
    with pytest.raises(ValueError, match=r"does not hold torchvision's resnet18 \(its 120 convolutions and BatchNorm"):
        trunk("batch", str(tmp_path / "convolutions.pth"))


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights=.*nowhere\.pth is not a file"):
        ResNetEncoder(SPECS, weights=str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("content", [{"conv1.weight": torch.zeros(64, 3, 7, 7)}, {"model": {}}, [1, 2]])
def test_weights_of_another_network_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth does not hold torchvision's resnet18"):
        ResNetEncoder(SPECS, weights=str(tmp_path / "other.pth"))


def test_a_file_that_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"page\.pth does not hold torchvision's resnet18"):
        ResNetEncoder(SPECS, weights=str(tmp_path / "page.pth"))

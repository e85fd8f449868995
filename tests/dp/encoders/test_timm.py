"""Any backbone of timm: pooled, from local weights, frozen, with GroupNorm."""

from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from dp.encoders import TimmEncoder
from dp.encoders.resnet import SpatialSoftmax
from tests.specs import specs

SPECS = specs(image=(3, 96, 96), agent_pos=(2,))


def obs(n: int = 2) -> dict[str, Tensor]:
    return {"image": torch.rand(n, 2, 3, 96, 96), "agent_pos": torch.rand(n, 2, 2)}


@pytest.mark.parametrize("pool", ["own", "spatial_softmax", "mean"])
@pytest.mark.parametrize("norm", ["own", "group"])
@pytest.mark.parametrize(
    "model",
    ["resnet10t", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "efficientnet_b0", "mobilenetv3_small_050"],
)
def test_each_kind_of_network_gives_features_of_every_step_and_learns(model: str, norm: str, pool: str) -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder(SPECS, model, pool=pool, norm=norm, crop=None, feature_dim=12)
    features = encoder(obs())
    assert features.shape == (2, 2, 14) == (2, 2, encoder.out_dim)
    features.square().sum().backward()
    assert next(encoder.backbones["image"].model.parameters()).grad.abs().sum() > 0
    batch_norms = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert not batch_norms or norm == "own"


def test_features_are_timms_own() -> None:
    torch.manual_seed(0)
    encoder = TimmEncoder(SPECS, "resnet10t", pool="own", crop=None).eval()
    own = timm.create_model("resnet10t", num_classes=0).eval()
    own.load_state_dict(encoder.backbones["image"].model.state_dict())
    cfg, seen = own.pretrained_cfg, obs()
    mean, std = (torch.tensor(cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = encoder.backbones["image"].project(own((seen["image"].flatten(0, 1) - mean) / std))
        torch.testing.assert_close(encoder(seen)[..., :-2].flatten(0, 1), expected)


def test_tokens_of_a_transformer_lie_where_their_patches_do() -> None:
    torch.manual_seed(0)
    backbone = TimmEncoder(SPECS, "vit_tiny_patch16_224", crop=None).eval().backbones["image"]
    assert isinstance(backbone.keypoints, SpatialSoftmax)
    backbone.model.blocks = nn.Sequential()  # no attention: a token knows its own patch alone
    image = torch.rand(1, 3, 96, 96)
    changed = image.clone()
    changed[:, :, 16:32, 64:80] = 0
    with torch.no_grad():
        differs = (backbone._map(image) - backbone._map(changed)).abs().amax(1)[0] > 1e-6
    assert differs.nonzero().tolist() == [[1, 4]]


@pytest.mark.parametrize("form", ["safetensors", "pt"])
@pytest.mark.parametrize("norm", ["own", "group"])
def test_local_weights_are_loaded(tmp_path: Path, form: str, norm: str) -> None:
    weights = timm.create_model("resnet10t").state_dict()  # with its classifier, as they are distributed
    path = tmp_path / f"weights.{form}"
    (safetensors.torch.save_file if form == "safetensors" else torch.save)(weights, path)
    loaded = TimmEncoder(SPECS, "resnet10t", str(path), norm=norm).backbones["image"].model.state_dict()
    assert all(torch.equal(loaded[name], weights[name]) for name in loaded)
    assert {"conv1.0.weight", "layer1.0.bn1.weight"} <= loaded.keys() <= weights.keys()


def test_a_frozen_backbone_stays_as_it_is() -> None:
    encoder = TimmEncoder(SPECS, "resnet10t", frozen=True, crop=None).train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    optimizer = torch.optim.AdamW(encoder.parameters(), 0.1)
    encoder(obs()).square().sum().backward()
    optimizer.step()
    changed = {name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"backbones.image.keypoints.heatmaps.weight", "backbones.image.project.weight"} <= changed
    assert not [name for name in changed if ".model." in name]


class Runs:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("/tmp/dp-code-ran"),)


def test_what_cannot_be_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model=resnet19 is not one of timm's. It has, for example, resnet"):
        TimmEncoder(SPECS, "resnet19")
    with pytest.raises(ValueError, match="is not one of timm's"):  # it would be built from a stranger's configuration
        TimmEncoder(SPECS, "hf-hub:stranger/model")
    with pytest.raises(ValueError, match="weights=nowhere is neither a file nor hub"):
        TimmEncoder(SPECS, weights="nowhere")
    other = tmp_path / "other.pt"
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match=r"other.pt does not hold the weights of model=resnet10t: conv1.0.weight is"):
        TimmEncoder(SPECS, "resnet10t", str(other))
    with pytest.raises(ValueError, match="cannot be made for images of 8 x 9"):
        TimmEncoder(SPECS, "vit_tiny_patch16_224", crop=[8, 9])
    hostile = tmp_path / "hostile.pt"
    torch.save({"a": Runs()}, hostile)
    with pytest.raises(ValueError, match="cannot be made"):
        TimmEncoder(SPECS, "resnet10t", str(hostile))
    assert not Path("/tmp/dp-code-ran").exists()

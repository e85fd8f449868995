"""The compact encoder sees where things are."""

import pytest
import torch

from dp.encoders import CNNEncoder

SHAPES = {"image": (3, 96, 96), "agent_pos": (2,)}


def blob(y: int, x: int) -> dict[str, torch.Tensor]:
    image = torch.ones(1, 1, 3, 96, 96)
    image[..., y : y + 8, x : x + 8] = 0
    return {"image": image, "agent_pos": torch.zeros(1, 1, 2)}


def test_width_is_the_features_and_the_low_dimensional_observations() -> None:
    assert CNNEncoder(SHAPES, feature_dim=32).out_dim == 32 + 2


def test_a_shifted_blob_has_other_features() -> None:
    torch.manual_seed(0)
    encoder = CNNEncoder(SHAPES).eval()
    with torch.no_grad():
        here, same, there = encoder(blob(24, 24)), encoder(blob(24, 24)), encoder(blob(40, 56))
    # Shifts by multiples of the total stride, 16: pooling the last feature map would not see them.
    assert torch.equal(here, same)
    assert (here - there).norm() > 0.1 * here.norm()


def test_every_parameter_is_trained() -> None:
    torch.manual_seed(0)
    encoder = CNNEncoder(SHAPES)
    obs = {"image": torch.rand(2, 2, 3, 96, 96), "agent_pos": torch.zeros(2, 2, 2)}
    (encoder(obs) * torch.randn(2, 2, encoder.out_dim)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("crop", [0, 20])
def test_a_crop_that_the_convolutions_shrink_to_nothing_is_refused(crop):
    with pytest.raises(ValueError, match=f"encoder.crop={crop} is too small"):
        CNNEncoder({"image": [3, 96, 96], "agent_pos": [2]}, crop=crop)

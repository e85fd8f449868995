"""The compact encoder sees where things are."""

import pytest
import torch

from dp.encoders import CNNEncoder
from tests.specs import specs

SPECS = specs(image=(3, 96, 96), agent_pos=(2,))


def blob(y: int, x: int) -> dict[str, torch.Tensor]:
    image = torch.ones(1, 1, 3, 96, 96)
    image[..., y : y + 8, x : x + 8] = 0
    return {"image": image, "agent_pos": torch.zeros(1, 1, 2)}


def test_width_is_the_features_and_the_low_dimensional_observations() -> None:
    assert CNNEncoder(SPECS, feature_dim=32).out_dim == 32 + 2


def test_a_shifted_blob_has_other_features() -> None:
    torch.manual_seed(0)
    encoder = CNNEncoder(SPECS).eval()
    with torch.no_grad():
        here, same, there = encoder(blob(24, 24)), encoder(blob(24, 24)), encoder(blob(40, 56))
    # Shifts by multiples of the total stride, 16: pooling the last feature map would not see them.
    assert torch.equal(here, same)
    assert (here - there).norm() > 0.1 * here.norm()


def test_every_parameter_is_trained() -> None:
    torch.manual_seed(0)
    encoder = CNNEncoder(SPECS)
    obs = {"image": torch.rand(2, 2, 3, 96, 96), "agent_pos": torch.zeros(2, 2, 2)}
    (encoder(obs) * torch.randn(2, 2, encoder.out_dim)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("crop", [20, [20, 96], [96, 20], 0.2])
def test_a_crop_that_the_convolutions_shrink_to_nothing_is_refused(crop: int | float | list[int]) -> None:
    with pytest.raises(ValueError, match=r"crop=.* pixels, too small for 4 strided convolutions: set"):
        CNNEncoder(SPECS, crop=crop)


def test_the_linear_layer_fits_images_that_are_not_square() -> None:
    encoder = CNNEncoder(specs(image=(3, 64, 128)), crop=None)
    (linear,) = [m for m in encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert linear.in_features == 128 * 2 * 6  # 64 and 128 pixels after four strided convolutions
    assert encoder({"image": torch.rand(2, 1, 3, 64, 128)}).shape == (2, 1, 128)

"""What both image encoders share: the crop, and the observations beside the image."""

import pytest
import torch
from torch import Tensor

from dp.encoders import CNNEncoder, ResNetEncoder
from dp.encoders.image import RandomCrop

SHAPES = {"image": (3, 96, 96), "agent_pos": (2,)}
ENCODERS = [CNNEncoder, ResNetEncoder]


def numbered_images(n: int, height: int = 12, width: int = 14) -> Tensor:
    """Every pixel holds (number of the image, its row, its column)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    numbers = torch.arange(n)[:, None, None].expand(n, height, width)
    return torch.stack([numbers, rows.expand(n, -1, -1), columns.expand(n, -1, -1)], dim=1).float()


def test_training_crops_are_windows_of_their_own_image() -> None:
    torch.manual_seed(0)
    images = numbered_images(200)
    crops = RandomCrop(9).train()(images)
    assert crops.shape == (200, 3, 9, 9)
    for image, crop in zip(images, crops, strict=True):
        top, left = int(crop[1, 0, 0]), int(crop[2, 0, 0])
        assert torch.equal(crop, image[:, top : top + 9, left : left + 9])


def test_training_crops_differ_between_images_and_reach_every_place() -> None:
    torch.manual_seed(0)
    crops = RandomCrop(9).train()(numbered_images(400))
    places = {(int(c[1, 0, 0]), int(c[2, 0, 0])) for c in crops}
    assert places == {(top, left) for top in range(12 - 9 + 1) for left in range(14 - 9 + 1)}


def test_evaluation_takes_the_centre() -> None:
    images = numbered_images(2)
    crop = RandomCrop(8).eval()
    assert torch.equal(crop(images), images[:, :, 2:10, 3:11])


@pytest.mark.parametrize("make", ENCODERS)
def test_features_are_random_in_training_and_not_in_evaluation(make: type) -> None:
    torch.manual_seed(0)
    encoder = make(SHAPES)
    obs = {"image": torch.rand(2, 2, 3, 96, 96), "agent_pos": torch.zeros(2, 2, 2)}
    with torch.no_grad():
        encoder.train()
        assert not torch.allclose(encoder(obs), encoder(obs), atol=1e-6)
        encoder.eval()
        assert torch.equal(encoder(obs), encoder(obs))


@pytest.mark.parametrize("make", ENCODERS)
def test_low_dimensional_observations_follow_the_images_features(make: type) -> None:
    torch.manual_seed(0)
    encoder = make({"agent_pos": (2,), "image": (3, 96, 96)}).eval()
    obs = {"agent_pos": torch.randn(2, 3, 2), "image": torch.rand(2, 3, 3, 96, 96)}
    with torch.no_grad():
        features = encoder(obs)
        assert features.shape == (2, 3, encoder.out_dim)
        assert torch.equal(features[..., -2:], obs["agent_pos"])
        # Each step's features come from that step's image.
        obs["image"][1, 2] = 0
        changed = (encoder(obs) - features).abs().amax(-1) > 1e-5
    assert changed.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize("make", ENCODERS)
def test_an_image_alone_is_enough(make: type) -> None:
    encoder = make({"image": (3, 96, 96)}).eval()
    with torch.no_grad():
        assert encoder({"image": torch.rand(2, 1, 3, 96, 96)}).shape == (2, 1, encoder.out_dim)


@pytest.mark.parametrize("make", ENCODERS)
@pytest.mark.parametrize(
    ("shapes", "crop", "named"),
    [
        ({"agent_pos": (2,)}, 84, "needs an 'image'"),
        (SHAPES, 97, "crop=97"),
        ({"image": (1, 96, 96)}, 84, "RGB"),
    ],
)
def test_what_cannot_be_cropped_is_refused(make: type, shapes: dict, crop: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(shapes, crop=crop)

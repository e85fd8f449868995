"""What both image encoders share: cameras, crops, pixel values, and the low-dimensional observations."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import resize

from dp.encoders import CNNEncoder, ResNetEncoder, TimmEncoder
from dp.encoders.image import RandomCrop, Standardize, crop_size
from tests.specs import specs

SPECS = specs(image=(3, 96, 96), agent_pos=(2,))
ENCODERS = [CNNEncoder, ResNetEncoder, TimmEncoder]


def numbered_images(n: int, height: int = 12, width: int = 14) -> Tensor:
    """Every pixel holds (number of the image, its row, its column)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    numbers = torch.arange(n)[:, None, None].expand(n, height, width)
    return torch.stack([numbers, rows.expand(n, -1, -1), columns.expand(n, -1, -1)], dim=1).float()


def test_training_crops_are_windows_of_their_own_image() -> None:
    torch.manual_seed(0)
    images = numbered_images(200)
    crops = RandomCrop((9, 11)).train()(images)
    assert crops.shape == (200, 3, 9, 11)
    for image, crop in zip(images, crops, strict=True):
        top, left = int(crop[1, 0, 0]), int(crop[2, 0, 0])
        assert torch.equal(crop, image[:, top : top + 9, left : left + 11])


def test_training_crops_differ_between_images_and_reach_every_place() -> None:
    torch.manual_seed(0)
    crops = RandomCrop((9, 9)).train()(numbered_images(400))
    places = {(int(c[1, 0, 0]), int(c[2, 0, 0])) for c in crops}
    assert places == {(top, left) for top in range(12 - 9 + 1) for left in range(14 - 9 + 1)}


def test_evaluation_takes_the_centre() -> None:
    images = numbered_images(2)
    crop = RandomCrop((8, 8)).eval()
    assert torch.equal(crop(images), images[:, :, 2:10, 3:11])


@pytest.mark.parametrize("make", ENCODERS)
def test_features_are_random_in_training_and_not_in_evaluation(make: type) -> None:
    torch.manual_seed(0)
    encoder = make(SPECS)
    obs = {"image": torch.rand(2, 2, 3, 96, 96), "agent_pos": torch.zeros(2, 2, 2)}
    with torch.no_grad():
        encoder.train()
        assert not torch.allclose(encoder(obs), encoder(obs), atol=1e-6)
        encoder.eval()
        assert torch.equal(encoder(obs), encoder(obs))


@pytest.mark.parametrize("make", ENCODERS)
def test_low_dimensional_observations_follow_the_images_features(make: type) -> None:
    torch.manual_seed(0)
    encoder = make(specs(agent_pos=(2,), image=(3, 96, 96))).eval()
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
    encoder = make(specs(image=(3, 96, 96))).eval()
    with torch.no_grad():
        assert encoder({"image": torch.rand(2, 1, 3, 96, 96)}).shape == (2, 1, encoder.out_dim)


@pytest.mark.parametrize("make", ENCODERS)
@pytest.mark.parametrize("crop", [64, [64, 80], 0.75, None])
def test_cameras_of_different_sizes_each_have_a_backbone(make: type, crop: int | float | list[int] | None) -> None:
    """Under any names, also one with a dot, in the order of the specs."""
    torch.manual_seed(0)
    encoder = make({**specs(gripper=(1,), **{"observation.top": (3, 96, 128), "wrist": (3, 72, 80)})}, crop=crop)
    encoder.eval()
    obs = {
        "gripper": torch.randn(2, 3, 1),
        "wrist": torch.rand(2, 3, 3, 72, 80),
        "observation.top": torch.rand(2, 3, 3, 96, 128),
    }
    with torch.no_grad():
        features = encoder(obs)
        assert features.shape == (2, 3, encoder.out_dim)
        width = (encoder.out_dim - 1) // 2
        assert torch.equal(features[..., -1:], obs["gripper"])
        changed = encoder({**obs, "wrist": 1 - obs["wrist"]}) != features
    assert not changed[..., :width].any()
    assert changed[..., width:-1].any(-1).all()
    assert list(encoder.backbones) == ["observation_top", "wrist"]
    first, second = (list(backbone.parameters()) for backbone in encoder.backbones.values())
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("make", ENCODERS)
def test_without_a_crop_every_pixel_counts_and_nothing_is_random(make: type) -> None:
    torch.manual_seed(0)
    encoder = make(specs(image=(3, 96, 96)), crop=None).train()
    image = torch.rand(1, 1, 3, 96, 96, requires_grad=True)
    features = encoder({"image": image})
    assert torch.equal(encoder({"image": image}), features)
    (gradient,) = torch.autograd.grad(features.square().sum(), image)
    # The strided convolutions of the CNN end at pixel 81 of 96. A centre crop would leave out the first ones.
    assert gradient[..., :81, :81].abs().sum(2).gt(0).all()


@pytest.mark.parametrize(
    ("crop", "size"),
    [(84, (84, 84)), ([60, 90], (60, 90)), (0.9, (86, 115)), (1.0, (96, 128)), (None, (96, 128)), (1, (1, 1))],
)
def test_a_crop_is_pixels_a_fraction_or_nothing(crop: int | float | list[int] | None, size: tuple[int, int]) -> None:
    assert crop_size(crop, "image", (96, 128)) == size


def test_the_default_maps_pixels_to_minus_one_to_one_to_the_bit() -> None:
    """As `x * 2 - 1` does, with which earlier versions trained."""
    x = torch.cat([torch.arange(256) / 255, torch.rand(2**16)])[:, None, None, None].expand(-1, 3, 1, 1)
    assert torch.equal(Standardize(0.5, 0.5)(x), x * 2 - 1)


def test_mean_and_std_may_differ_between_channels() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    x = torch.rand(4, 3, 5, 6)
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(Standardize(mean, std)(x), expected)


@pytest.mark.parametrize("make", ENCODERS)
def test_mean_and_std_reach_the_backbone(make: type) -> None:
    torch.manual_seed(0)
    obs, seen = {"image": torch.rand(1, 1, 3, 96, 96)}, []
    encoder = make(specs(image=(3, 96, 96)), crop=None, mean=0.25, std=[1.0, 2.0, 4.0]).eval()
    encoder.backbones["image"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(obs)
    std = torch.tensor([1.0, 2.0, 4.0])[:, None, None]
    torch.testing.assert_close(seen[0], (obs["image"][0] - 0.25) / std)


@pytest.mark.parametrize("make", ENCODERS)
@pytest.mark.parametrize(
    ("shapes", "settings", "named"),
    [
        (
            {"agent_pos": (2,)},
            {},
            r"needs an observation of type rgb, but the task has \['agent_pos'\]: use encoder=state",
        ),
        ({"top": (3, 96, 96)}, {"crop": 97}, r"crop=97 does not fit top, whose images have 96 x 96 pixels"),
        ({"top": (3, 96, 96), "wrist": (3, 96, 80)}, {"crop": 84}, "crop=84 does not fit wrist, .* 96 x 80 pixels"),
        ({"top": (3, 96, 80)}, {"crop": [80, 96]}, r"crop=\[80, 96\] does not fit top"),
        ({"top": (3, 96, 96)}, {"crop": 0}, "crop=0 does not fit top"),
        (
            {"top": (3, 96, 96)},
            {"crop": 1.5},
            r"crop=1\.5, expected pixels .* \[height, width\], a fraction",
        ),
        ({"top": (3, 96, 96)}, {"crop": -0.5}, r"crop=-0\.5, expected pixels"),
        ({"top": (3, 96, 96)}, {"crop": True}, "crop=True, expected pixels"),
        ({"top": (3, 96, 96)}, {"crop": [84]}, r"crop=\[84\], expected pixels"),
        ({"top": (3, 96, 96)}, {"mean": [0.5, 0.5]}, r"mean=\[0\.5, 0\.5\], expected a number or three"),
        ({"top": (3, 96, 96)}, {"std": 0.0}, r"std=0\.0, expected positive numbers"),
        ({"top": (3, 96, 96)}, {"std": [1.0, -1.0, 1.0]}, r"std=.*, expected positive numbers"),
    ],
)
def test_what_cannot_be_encoded_is_refused(make: type, shapes: dict, settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make(specs(**shapes), **settings)


@pytest.mark.parametrize("make", ENCODERS)
def test_images_are_resized_before_they_are_cropped(make: type) -> None:
    torch.manual_seed(0)
    encoder = make(specs(image=(3, 60, 80)), resize=[96, 128], crop=[72, 96]).eval()
    torch.manual_seed(0)
    plain = make(specs(image=(3, 96, 128)), crop=[72, 96]).eval()
    images = torch.rand(2, 1, 3, 60, 80)
    resized = resize(images[:, 0], [96, 128], antialias=True)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(encoder({"image": images}), plain({"image": resized}), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [[96], [96, 0]])
def test_a_size_to_resize_to_is_two_sides_in_pixels(size: list[int]) -> None:
    with pytest.raises(ValueError, match=r"^resize=.*expected \[height, width\] in pixels, or null"):
        CNNEncoder(specs(image=(3, 60, 80)), resize=size)

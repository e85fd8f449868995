"""Colour jitter and erased rectangles."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv

from dp.encoders import augment
from dp.encoders.augment import Augment


def test_without_strength_and_in_evaluation_nothing_changes_and_nothing_is_drawn() -> None:
    images, before = torch.rand(4, 3, 12, 10), torch.get_rng_state()
    assert Augment(0.0, 0.0).train()(images) is images
    assert Augment(0.5, 1.0).eval()(images) is images
    assert torch.equal(torch.get_rng_state(), before)


def test_colours_change_as_torchvisions_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Brightness, contrast and saturation in this order, with a factor of its own for every image."""
    images = torch.rand(2, 3, 8, 8)
    drawn = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.0, 1.0]]).reshape(3, 2, 1, 1, 1)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: drawn)
    jittered = Augment(0.5, 0.0).train()(images)
    for image, result, (brightness, contrast, saturation) in zip(
        images, jittered, (0.5 + drawn).flatten(1).T.tolist(), strict=True
    ):
        expected = tv.adjust_contrast(tv.adjust_brightness(image, brightness), contrast)
        torch.testing.assert_close(result, tv.adjust_saturation(expected, saturation), atol=2e-3, rtol=0)


def test_rectangles_turn_grey_in_their_share_of_the_images() -> None:
    torch.manual_seed(0)
    images = torch.zeros(4000, 3, 24, 32)
    erased = Augment(0.0, 0.25).train()(images)[:, 0] == augment.GREY
    has_one = erased.flatten(1).any(1)
    assert 0.22 < has_one.float().mean() < 0.28
    rectangles = erased[has_one]
    rows, columns = rectangles.any(2), rectangles.any(1)
    assert torch.equal(rectangles, rows[:, :, None] & columns[:, None])  # a rectangle, and one piece of it
    for line in (rows, columns):
        assert ((line[:, 1:] & ~line[:, :-1]).sum(1) + line[:, 0] == 1).all()
    area = rectangles.float().mean((1, 2))
    assert area.min() > 0.01
    assert area.max() < 0.36
    assert rectangles.float().mean(0)[1:-1, 1:-1].min() > 0  # everywhere


@pytest.mark.parametrize("name", ["jitter", "erase"])
def test_other_numbers_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=1.5, expected a number from 0 to 1"):
        Augment(**{"jitter": 0.0, "erase": 0.0, name: 1.5})

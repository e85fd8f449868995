import pytest
import torch

from dp.modalities import Normalizer


@pytest.fixture
def arrays() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([512.0, 0.01]), torch.tensor([-100.0, 3.0])
    return {
        "action": torch.rand(200, 2, generator=generator) * scale + shift,
        "keypoint": torch.rand(200, 9, 2, generator=generator) * 512,
    }


def test_data_fill_minus_one_to_one_channel_by_channel(arrays: dict[str, torch.Tensor]) -> None:
    normalizer = Normalizer.fit(arrays)
    for name, array in arrays.items():
        x = normalizer.normalize(name, array)
        torch.testing.assert_close(x.amin(0), -torch.ones(array.shape[1:]), rtol=0, atol=1e-4)
        torch.testing.assert_close(x.amax(0), torch.ones(array.shape[1:]), rtol=0, atol=1e-4)


def test_map_is_linear() -> None:
    normalizer = Normalizer.fit({"action": torch.tensor([[0.0], [400.0]])})
    x = normalizer.normalize("action", torch.tensor([[[100.0], [200.0]], [[400.0], [800.0]]]))
    torch.testing.assert_close(x, torch.tensor([[[-0.5], [0.0]], [[1.0], [3.0]]]))


def test_unnormalize_inverts_normalize(arrays: dict[str, torch.Tensor]) -> None:
    normalizer = Normalizer.fit(arrays)
    for name, array in arrays.items():
        back = normalizer.unnormalize(name, normalizer.normalize(name, array))
        torch.testing.assert_close(back, array, rtol=0, atol=1e-4)


def test_constant_channel_becomes_zero_and_comes_back() -> None:
    array = torch.tensor([[1.0, 7.0], [2.0, 7.00001]])
    normalizer = Normalizer.fit({"action": array})
    x = normalizer.normalize("action", array)
    torch.testing.assert_close(x[:, 0], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(x[:, 1], torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalizer.unnormalize("action", x), array)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(arrays: dict[str, torch.Tensor], bad: float) -> None:
    arrays["keypoint"][17, 3, 1] = bad
    with pytest.raises(ValueError, match=r"'keypoint'.*not finite"):
        Normalizer.fit(arrays)


def test_state_dict_carries_the_statistics(arrays: dict[str, torch.Tensor]) -> None:
    fitted = Normalizer.fit(arrays)
    loaded = Normalizer({name: array.shape[1:] for name, array in arrays.items()})
    loaded.load_state_dict(fitted.state_dict())
    for name, array in arrays.items():
        assert torch.equal(loaded.normalize(name, array), fitted.normalize(name, array))
    assert not list(fitted.parameters())  # an optimizer must not find them

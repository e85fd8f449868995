import pytest
import torch

from dp.modalities import Normalizer, Spec, parse_shape_meta
from tests.specs import specs


@pytest.fixture
def arrays() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.tensor([512.0, 0.01]), torch.tensor([-100.0, 3.0])
    return {
        "action": torch.rand(200, 2, generator=generator) * scale + shift,
        "keypoint": torch.rand(200, 9, 2, generator=generator) * 512,
    }


def fit(arrays: dict[str, torch.Tensor]) -> Normalizer:
    return Normalizer.fit(specs({name: array.shape[1:] for name, array in arrays.items()}), arrays)


def test_data_fill_minus_one_to_one_channel_by_channel(arrays: dict[str, torch.Tensor]) -> None:
    normalizer = fit(arrays)
    for name, array in arrays.items():
        x = normalizer.normalize(name, array)
        torch.testing.assert_close(x.amin(0), -torch.ones(array.shape[1:]), rtol=0, atol=1e-4)
        torch.testing.assert_close(x.amax(0), torch.ones(array.shape[1:]), rtol=0, atol=1e-4)


def test_map_is_linear() -> None:
    normalizer = fit({"action": torch.tensor([[0.0], [400.0]])})
    x = normalizer.normalize("action", torch.tensor([[[100.0], [200.0]], [[400.0], [800.0]]]))
    torch.testing.assert_close(x, torch.tensor([[[-0.5], [0.0]], [[1.0], [3.0]]]))


def test_unnormalize_inverts_normalize(arrays: dict[str, torch.Tensor]) -> None:
    normalizer = fit(arrays)
    for name, array in arrays.items():
        back = normalizer.unnormalize(name, normalizer.normalize(name, array))
        torch.testing.assert_close(back, array, rtol=0, atol=1e-4)


def test_constant_channel_becomes_zero_and_comes_back() -> None:
    array = torch.tensor([[1.0, 7.0], [2.0, 7.00001]])
    normalizer = fit({"action": array})
    x = normalizer.normalize("action", array)
    torch.testing.assert_close(x[:, 0], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(x[:, 1], torch.zeros(2), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalizer.unnormalize("action", x), array)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(arrays: dict[str, torch.Tensor], bad: float) -> None:
    arrays["keypoint"][17, 3, 1] = bad
    with pytest.raises(ValueError, match=r"'keypoint'.*not finite"):
        fit(arrays)


def test_state_dict_carries_the_statistics(arrays: dict[str, torch.Tensor]) -> None:
    fitted = fit(arrays)
    loaded = Normalizer(fitted.specs)
    loaded.load_state_dict(fitted.state_dict())
    for name, array in arrays.items():
        assert torch.equal(loaded.normalize(name, array), fitted.normalize(name, array))
    assert not list(fitted.parameters())  # an optimizer must not find them


def normalized(option: object, array: torch.Tensor) -> tuple[torch.Tensor, Normalizer]:
    normalizer = Normalizer.fit(
        {"action": Spec("low_dim", tuple(array.shape[1:]), "action", option)}, {"action": array}
    )
    x = normalizer.normalize("action", array)
    torch.testing.assert_close(normalizer.unnormalize("action", x), array, rtol=1e-5, atol=1e-4)
    return x, normalizer


def test_mean_std_gives_every_channel_mean_0_and_standard_deviation_1(arrays: dict[str, torch.Tensor]) -> None:
    x, normalizer = normalized("mean_std", arrays["keypoint"])
    torch.testing.assert_close(x.mean(0), torch.zeros(9, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(9, 2), rtol=0, atol=1e-4)
    assert not normalizer.clamps("action")
    constant, _ = normalized("mean_std", torch.tensor([[1.0, 7.0], [2.0, 7.0]]))
    assert constant[:, 1].tolist() == [0, 0]


def test_none_changes_nothing(arrays: dict[str, torch.Tensor]) -> None:
    x, normalizer = normalized("none", arrays["action"])
    assert torch.equal(x, arrays["action"])
    assert not normalizer.clamps("action")


def test_limits_map_to_minus_one_and_one_whatever_the_data() -> None:
    array = torch.tensor([[0.0, 5.0], [1.0, 5.0]])
    x, normalizer = normalized({"low": [0, 0], "high": [2, 10]}, array)
    assert x.tolist() == [[-1, 0], [0, 0]]
    assert normalized({"low": -10, "high": 10}, array)[0].tolist() == [[0, 0.5], [pytest.approx(0.1), 0.5]]
    assert normalizer.clamps("action")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("minmax", "action.normalize=minmax, expected min_max, mean_std, none or"),
        ({"low": 0}, "action.normalize=.*expected {low: ..., high: ...}"),
        ({"low": [0, 0, 0], "high": 1}, r"numbers or lists of shape \[2\]"),
        ({"low": [0, 1], "high": 1}, "expected low < high"),
    ],
)
def test_a_normalisation_that_is_none_is_named_before_any_data_are_read(option: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_shape_meta({"obs": {"x": {"shape": [1]}}, "action": {"shape": [2], "normalize": option}})


def test_images_become_floats_and_have_no_statistics() -> None:
    normalizer = Normalizer.fit(specs({"front": (3, 4, 6), "action": (1,)}), {"action": torch.tensor([[0.0], [1.0]])})
    assert set(normalizer.state_dict()) == {"action_scale", "action_offset"}
    x = normalizer.normalize("front", torch.full((2, 4, 6, 3), 51, dtype=torch.uint8))
    torch.testing.assert_close(x, torch.full((2, 3, 4, 6), 0.2))

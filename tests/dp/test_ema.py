import pytest
import torch
from torch import nn

from dp.ema import EMA


def model_after(step: int) -> nn.Module:
    torch.manual_seed(step)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def weights(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.parametrize(
    "options",
    [{}, {"power": 2 / 3, "inv_gamma": 10.0}, {"min_decay": 0.3, "max_decay": 0.7}],
    ids=["defaults", "slower", "bounded"],
)
def test_decay_follows_the_power_schedule(options: dict[str, float]) -> None:
    ema = EMA(nn.Linear(1, 1), **options)
    power, inv_gamma = options.get("power", 0.75), options.get("inv_gamma", 1.0)
    low, high = options.get("min_decay", 0.0), options.get("max_decay", 0.9999)
    for n in range(50):
        expected = min(max(1 - (1 + (n - 1) / inv_gamma) ** -power, low), high) if n > 1 else 0
        assert ema.decay() == pytest.approx(expected, abs=1e-12)
        ema.update(nn.Linear(1, 1))


def test_decay_at_milestones() -> None:
    ema = EMA(nn.Linear(1, 1))
    expected = {0: 0.0, 1: 0.0, 2: 1 - 2**-0.75, 16: 1 - 16**-0.75, 512_400: 0.9999}  # the last: the paper's run
    for ema.num_updates, decay in expected.items():
        assert ema.decay() == pytest.approx(decay, abs=1e-12)


def test_average_equals_a_plain_loop() -> None:
    ema = EMA(model_after(0))
    average = weights(ema.model).tolist()
    for n in range(30):
        model = model_after(n + 1)
        decay = 1 - (1 + max(0, n - 1)) ** -0.75
        average = [decay * old + (1 - decay) * new for old, new in zip(average, weights(model).tolist(), strict=True)]
        ema.update(model)
        torch.testing.assert_close(weights(ema.model), torch.tensor(average))


def test_average_is_a_frozen_copy() -> None:
    model = model_after(0)
    ema = EMA(model)
    ema.update(model_after(1))
    assert torch.equal(weights(model), weights(model_after(0)))
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not ema.model.training
    assert model.training


def test_running_statistics_are_those_of_the_trained_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ema = EMA(model)
    for _ in range(5):
        model(2 * torch.randn(16, 3) + 1)
        ema.update(model)
    for ours, theirs in zip(ema.model.buffers(), model.buffers(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours is not theirs
    assert ema.model[1].num_batches_tracked == 5
    assert not torch.equal(ema.model[1].running_mean, torch.zeros(4))


def test_a_buffer_that_the_model_replaces_is_followed_without_walking_the_modules_again(monkeypatch) -> None:
    model = nn.Linear(3, 4)
    model.register_buffer("seen", torch.zeros(2))
    ema = EMA(model)
    ema.update(model)
    monkeypatch.setattr(nn.Module, "named_modules", lambda *_, **__: pytest.fail("walked again"))
    model.seen = model.seen + 1
    ema.update(model)
    assert ema.model.seen.tolist() == [1, 1]
    assert ema.model.seen is not model.seen


def test_loaded_average_continues_identically(tmp_path) -> None:
    ema = EMA(model_after(0))
    for n in range(1, 6):
        ema.update(model_after(n))
    torch.save(ema.state_dict(), tmp_path / "ema.pt")
    loaded = EMA(model_after(99))
    loaded.load_state_dict(torch.load(tmp_path / "ema.pt", weights_only=True))
    assert loaded.decay() == ema.decay()
    for n in range(6, 10):
        ema.update(model_after(n))
        loaded.update(model_after(n))
    assert torch.equal(weights(loaded.model), weights(ema.model))
    assert loaded.num_updates == 9

"""Every generative objective learns a known conditional distribution, in as many evaluations as it promises."""

import copy
import functools
import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from dp.denoisers import MLP
from dp.objectives import (
    EDM,
    Consistency,
    Diffusion,
    Distillation,
    Flow,
    MeanFlow,
    MinimalIterative,
    Regression,
    Shortcut,
)

SHAPES = ("two points", "ring", "line")

TOLERANCE = 0.02
"""Largest energy distance of 1,000 samples from 1,000 true ones. Equal distributions are 0.001 to 0.005 apart."""


def draw(n: int, generator: torch.Generator, scale: float = 1.0, balance: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Conditions (n, 1, 4), actions (n, 1, 2), and which of `SHAPES` each comes from.

    The fourth number of the condition moves the points, widens the ring and turns the line.
    """
    shape = torch.randint(3, (n,), generator=generator)
    number, along = torch.rand(2, n, generator=generator) * 2 - 1
    side = torch.where(torch.rand(n, generator=generator) < balance, 1.0, -1.0)
    places = torch.stack(
        [
            torch.stack([0.6 * side, 0.5 * side * number], 1),
            (0.6 + 0.1 * number[:, None]) * torch.stack([(math.pi * along).cos(), (math.pi * along).sin()], 1),
            0.9 * along[:, None] * torch.stack([(number * math.pi / 2).cos(), (number * math.pi / 2).sin()], 1),
        ]
    )
    action = scale * places[shape, torch.arange(n)] + 0.06 * torch.randn(n, 2, generator=generator)
    cond = torch.cat([nn.functional.one_hot(shape, 3).float(), number[:, None]], 1)
    return cond[:, None], action[:, None], shape


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Szekely and Rizzo 2013."""
    between, within = torch.cdist(x, y).mean(), torch.cdist(x, x).mean() + torch.cdist(y, y).mean()
    return float(2 * between - within)


def distances(sampler: Callable[[Tensor, torch.Generator], Tensor]) -> list[float]:
    """Of samples for true conditions from true ones, for each of `SHAPES`."""
    generator = torch.Generator().manual_seed(1)
    cond, action, shape = draw(3000, generator)
    other_cond, _, other_shape = draw(3000, generator)
    sampled = sampler(other_cond, generator)
    one, other = (torch.cat([c[:, 0, 3:], a[:, 0]], 1) for c, a in ((cond, action), (other_cond, sampled)))
    return [energy_distance(one[shape == kind], other[other_shape == kind]) for kind in range(3)]


def make(name: str, n: int) -> nn.Module:
    ddim = functools.partial(DDIMScheduler, num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    return {
        "diffusion": lambda: Diffusion(ddim(), n),
        "flow": lambda: Flow(n, "heun", "logit_normal"),
        "edm": lambda: EDM(n),
        "shortcut": lambda: Shortcut(n),
        "meanflow": lambda: MeanFlow(n),
        "consistency": lambda: Consistency(n),
        "distilled": lambda: Distillation(ddim(), n),
        "regression": Regression,
        "mip": MinimalIterative,
    }[name]()  # type: ignore[no-untyped-call]


STEPS = {"shortcut": 1000, "meanflow": 1000, "regression": 300, "mip": 300}
"""Of training, if not 600."""


@functools.cache
def trained(name: str) -> nn.Module:
    generator, objective = torch.Generator().manual_seed(0), make(name, 4)
    torch.manual_seed(0)
    n_steps = STEPS.get(name, 600)
    network = MLP(2, 1, 4, width=128, n_layers=3, n_times=objective.n_times)
    if name == "distilled":
        network = copy.deepcopy(trained("diffusion"))
        objective.teach_with(make("diffusion", 4), copy.deepcopy(network))
    averaged, optimizer = copy.deepcopy(network), torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, n_steps)
    for step in range(n_steps):
        cond, action, _ = draw(256, generator)
        optimizer.zero_grad()
        objective.loss(network, action, cond, generator).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for mean, parameter in zip(averaged.parameters(), network.parameters(), strict=True):
                mean.lerp_(parameter, 1 - min(0.99, (step + 1) / (step + 10)))
    return averaged


def sampled(name: str, n: int, cond: Tensor, generator: torch.Generator) -> Tensor:
    network, noise = trained(name), torch.randn(len(cond), 1, 2, generator=generator)
    with torch.no_grad():
        return make(name, n).sample(network, noise, cond, generator)


def test_the_distance_notices_what_would_be_wrong():
    def wrong(cond: Tensor, generator: torch.Generator, **change: float) -> Tensor:
        return draw(3000, torch.Generator().set_state(state), **change)[1]

    generator = torch.Generator().manual_seed(1)
    draw(3000, generator)
    state = generator.get_state()
    right, small, one_sided, still = (
        distances(functools.partial(wrong, **change)) for change in ({}, {"scale": 0.5}, {"balance": 0.7}, {"scale": 0})
    )
    assert max(right) < 0.3 * TOLERANCE
    assert min(small) > TOLERANCE
    assert one_sided[0] > TOLERANCE
    assert min(still) > 2 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "evaluations"),
    [
        ("diffusion", [16]), ("flow", [16]), ("edm", [16]), ("shortcut", [1, 2, 4, 8]), ("meanflow", [1, 2, 4, 8]),
        ("consistency", [1, 2, 4, 8]), ("distilled", [1, 2]),
    ],
)  # fmt: skip
def test_samples_are_those_of_the_data(name, evaluations):
    for n in evaluations:
        found = distances(functools.partial(sampled, name, n))
        assert max(found) < TOLERANCE, (n, dict(zip(SHAPES, found, strict=True)))


@pytest.mark.parametrize("name", ["regression", "mip"])
def test_a_regression_is_the_mean(name):
    generator = torch.Generator().manual_seed(1)
    cond, _, _ = draw(300, generator)
    assert sampled(name, 1, cond, generator).abs().mean() < 0.06  # that of every condition is 0
    assert torch.equal(sampled(name, 1, cond, generator), sampled(name, 1, cond, generator))

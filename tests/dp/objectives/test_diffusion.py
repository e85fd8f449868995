"""Diffusion trains what its sampler samples, with every scheduler of diffusers that can, and refuses the others."""

from typing import Any

import diffusers
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)
from torch import Tensor, nn

from dp.denoisers import UNet1d
from dp.encoders import StateEncoder
from dp.modalities import Normalizer
from dp.objectives import Diffusion
from dp.objectives.schedulers import ExactDenoiser, Gaussian
from dp.policy import DiffusionPolicy
from tests.specs import specs

SCHEDULERS = sorted(name for name in dir(diffusers) if name.endswith("Scheduler"))
PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]
MUST_WORK = {
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
}
MUST_BE_REFUSED = {
    "CMStochasticIterativeScheduler",  # its denoiser is a consistency function
    "LCMScheduler",  # so is this one's, although it runs
    "DDIMInverseScheduler",  # turns data into noise
    "FlowMatchEulerDiscreteScheduler",  # samples flows
    "RePaintScheduler",  # wants a mask
    "UnCLIPScheduler",  # adds too much noise in the last step
}
DATA = Gaussian(0.2, 0.3)


def cosine(kind: type, **settings: Any) -> Any:
    return kind(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2", **settings)


def unet() -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(2, 4, channels=(8, 16), kernel_size=3, step_embed_dim=16)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sorted_out(name: str) -> tuple[Diffusion | None, str]:
    """The objective with diffusers' scheduler `name`, or why there is none."""
    try:
        scheduler = getattr(diffusers, name)()
    except (TypeError, ImportError) as error:  # its arguments are not a noise schedule's, or torchsde is missing
        return None, str(error)
    try:
        return Diffusion(scheduler, 100), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_of_diffusers_samples_the_data_or_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp.objectives.diffusion.usable_schedulers", lambda prediction_type: ["those that work"])
    objective, refusal = sorted_out(name)
    assert (objective is not None) >= (name in MUST_WORK), refusal
    assert (objective is None) >= (name in MUST_BE_REFUSED)
    if objective is None:
        assert name in refusal
        return
    exact = ExactDenoiser(DATA, objective.alphas_cumprod, "epsilon")
    x = objective.sample(exact, torch.randn(4000, 1, 1, generator=seeded(0)), torch.zeros(4000, 1, 1), seeded(1))
    assert x.mean() == pytest.approx(DATA.mean, abs=0.03)
    assert x.std() == pytest.approx(DATA.std, rel=0.12)
    denoiser = unet()
    objective.loss(denoiser, torch.rand(3, 16, 2), torch.rand(3, 2, 2), seeded(0)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in denoiser.parameters())


def test_a_refusal_lists_the_schedulers_that_work() -> None:
    with pytest.raises(ValueError, match=r"^scheduler=LCMScheduler does not work .* Expected one of: ") as refused:
        Diffusion(cosine(LCMScheduler), 16)
    expected = str(refused.value).partition("Expected one of: ")[2].split(", ")
    assert set(expected) >= MUST_WORK
    assert set(expected) & MUST_BE_REFUSED == set()


def test_the_trial_draws_no_global_random_number_and_leaves_no_trace() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    objective = Diffusion(cosine(diffusers.SASolverScheduler), 10)  # it draws from the default generator
    assert torch.equal(torch.get_rng_state(), before)
    assert objective.state_dict() == {}


class OwnBetas(DDIMScheduler):
    """A schedule that its `config` knows nothing of."""

    def __init__(self, num_train_timesteps: int = 100, prediction_type: str = "epsilon") -> None:
        super().__init__(num_train_timesteps, beta_schedule="linear", prediction_type=prediction_type)
        self.betas = torch.linspace(0.001, 0.2, num_train_timesteps)
        self.alphas_cumprod = (1 - self.betas).cumprod(0)


class OtherSteps(DDIMScheduler):
    """Steps with another schedule than the one that it shows."""

    def step(self, *args: Any, **options: Any) -> Any:
        shown, self.alphas_cumprod = self.alphas_cumprod, self.alphas_cumprod * 0.5
        try:
            return super().step(*args, **options)
        finally:
            self.alphas_cumprod = shown


class Seen(nn.Module):
    """Remembers what it was given, and answers with zeros."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.x, self.t = x, t
        return torch.zeros_like(x)


def test_a_schedule_of_the_users_own_is_trained_with() -> None:
    seen, scheduler = Seen(), OwnBetas()
    action = torch.rand(64, 16, 2, generator=seeded(1))
    Diffusion(scheduler, 10).loss(seen, action, torch.zeros(64, 2, 2), seeded(0))
    noise = torch.randn(action.shape, generator=seeded(0))
    assert torch.equal(seen.x, scheduler.add_noise(action, noise, seen.t[:, 0]))
    assert not torch.allclose(seen.x, DDIMScheduler(100).add_noise(action, noise, seen.t[:, 0]), atol=0.1)


def test_a_scheduler_that_steps_with_another_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scheduler=OtherSteps does not work .* all actions are 0.2"):
        Diffusion(OtherSteps(100), 10)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_losses_equal_those_of_diffusers_to_the_bit(kind: type, prediction_type: str) -> None:
    scheduler, denoiser = cosine(kind, prediction_type=prediction_type), unet()
    action, cond = torch.rand(64, 16, 2, generator=seeded(1)) * 2 - 1, torch.rand(64, 2, 2, generator=seeded(2))
    loss = Diffusion(scheduler, 10).loss(denoiser, action, cond, seeded(0))
    generator = seeded(0)
    noise = torch.randn(action.shape, generator=generator)
    k = torch.randint(100, (64,), generator=generator)
    targets = {"epsilon": noise, "sample": action, "v_prediction": scheduler.get_velocity(action, noise, k)}
    prediction = denoiser(scheduler.add_noise(action, noise, k), k[:, None], cond)
    assert torch.equal(loss, F.mse_loss(prediction, targets[prediction_type]))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
@torch.no_grad()
def test_samples_equal_those_of_diffusers_to_the_bit(kind: type, prediction_type: str) -> None:
    scheduler, denoiser = cosine(kind, prediction_type=prediction_type), unet()
    x, cond = torch.randn(8, 16, 2, generator=seeded(1)), torch.rand(8, 2, 2, generator=seeded(2))
    sampled = Diffusion(cosine(kind, prediction_type=prediction_type), 10).sample(denoiser, x, cond, seeded(0))
    generator = seeded(0)
    scheduler.set_timesteps(10)
    for k in scheduler.timesteps:
        prediction = denoiser(x, torch.full((8, 1), int(k)), cond)
        x = scheduler.step(prediction, k, x, generator=generator).prev_sample
    assert torch.equal(sampled, x)


@pytest.mark.parametrize(
    ("kind", "steps", "evaluations"),
    [(DDIMScheduler, 10, 10), (HeunDiscreteScheduler, 10, 9), (KDPM2DiscreteScheduler, 9, 9), (PNDMScheduler, 20, 20)],
)
def test_num_inference_steps_counts_evaluations(kind: type, steps: int, evaluations: int) -> None:
    calls, denoiser = [], unet()
    denoiser.register_forward_hook(lambda module, args, out: calls.append(args[1]))
    Diffusion(cosine(kind), steps).sample(denoiser, torch.randn(2, 16, 2), torch.zeros(2, 2, 2), seeded(0))
    assert len(calls) == evaluations


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (cosine(DDIMScheduler), 0, "num_inference_steps=0, expected 1 to 100"),
        (cosine(DDIMScheduler), 101, "num_inference_steps=101, expected 1 to 100"),
        (cosine(PNDMScheduler), 4, "num_inference_steps=4: PNDMScheduler needs at least 13"),
        (cosine(DDIMScheduler, prediction_type="eps"), 10, "prediction_type=eps, expected epsilon, sample or v_pred"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(scheduler: Any, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Diffusion(scheduler, steps)


class Flow:
    """Rectified flow (Liu et al. 2022): straight paths from noise at time 0 to actions at time 1."""

    n_times = 1

    def __init__(self, num_inference_steps: int) -> None:
        self.num_inference_steps = num_inference_steps

    def loss(self, denoiser: Any, action: Tensor, cond: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = torch.randn(action.shape, generator=generator)
        t = torch.rand(len(action), 1, generator=generator)
        velocity = denoiser(t[..., None] * action + (1 - t[..., None]) * noise, 100 * t, cond)
        return F.mse_loss(velocity, action - noise)

    def sample(self, denoiser: Any, noise: Tensor, cond: Tensor, generator: Any) -> Tensor:
        x, n = noise, self.num_inference_steps
        for step in range(n):
            x = x + denoiser(x, torch.full((len(x), 1), 100 * step / n), cond) / n
        return x


def test_another_objective_trains_and_samples_with_the_same_policy_and_network() -> None:
    torch.manual_seed(0)
    network = UNet1d(2, 4, channels=(16, 32), kernel_size=3, step_embed_dim=16, norm="layer")
    box = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    normalizer = Normalizer.fit(specs(agent_pos=(2,), action=(2,)), {"agent_pos": box, "action": box})
    policy = DiffusionPolicy(StateEncoder(specs(agent_pos=(2,))), network, Flow(8), normalizer, 8, 2, 4, 2)
    optimizer, generator = torch.optim.AdamW(policy.parameters(), 3e-3), seeded(0)
    for _ in range(200):
        pos = torch.rand(64, 2, 2, generator=generator) - 0.5
        loss = policy.loss({"obs": {"agent_pos": pos}, "action": pos[:, -1:].expand(64, 8, 2)}, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pos = torch.rand(32, 2, 2, generator=generator) - 0.5
    action = policy.act({"agent_pos": pos}, generator)
    assert (action - pos[:, -1:]).abs().mean() < 0.1  # to stay where one is; untrained it is 0.7

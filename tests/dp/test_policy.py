"""The algorithm, checked with denoisers that know the answer, and its alignment with the real data."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from dp.denoisers import UNet1d
from dp.encoders import StateEncoder
from dp.modalities import Normalizer
from dp.objectives import Diffusion
from dp.policy import DiffusionPolicy
from dp.rollouts.runner import check_finite
from dp.tasks.pusht.demonstrations import PushTDemonstrations
from dp.tasks.pusht.env import PushTEnv
from tests.specs import pusht_demonstrations, specs

SCHEDULERS = Path(__file__).parents[2] / "configs" / "scheduler"
NAMES = ["ddpm", "ddim", "dpm_solver"]
PREDICTION_TYPES = ["epsilon", "sample", "v_prediction"]
HORIZON, N_OBS, N_ACTION = 16, 2, 8
POSITIONS = torch.tensor([[0.0, 0.0], [512.0, 512.0]])


class RampOracle(nn.Module):
    """Denoises perfectly towards the actions that continue the condition's last position in a straight line."""

    def __init__(self, prediction_type: str, alphas_cumprod: Tensor) -> None:
        super().__init__()
        self.prediction_type, self.alphas_cumprod = prediction_type, alphas_cumprod.double()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        action = ramp(cond.flatten(1)).double()
        signal = self.alphas_cumprod[t].sqrt()[:, :, None]
        sigma = (1 - self.alphas_cumprod[t]).sqrt()[:, :, None]
        noise = (x - signal * action) / sigma
        answers = {"epsilon": noise, "sample": action, "v_prediction": signal * noise - sigma * action}
        return answers[self.prediction_type].float()


def ramp(cond: Tensor, horizon: int = HORIZON) -> Tensor:
    """Normalised actions (B, H, 2) that pass the latest observed position at index To-1, 0.03 a step."""
    steps = torch.arange(horizon) - (N_OBS - 1)
    return cond[:, None, -2:] + 0.03 * steps[:, None]


def scheduler(name: str, prediction_type: str) -> tuple[object, int]:
    settings = OmegaConf.to_container(OmegaConf.load(SCHEDULERS / f"{name}.yaml"))
    steps = settings.pop("num_inference_steps")
    return instantiate({**settings, "prediction_type": prediction_type}), steps


def make_policy(
    name: str = "ddim", prediction_type: str = "epsilon", denoiser: nn.Module | None = None, noise_draws: int = 1
) -> DiffusionPolicy:
    """A policy that sees positions of 0..512 px: with a RampOracle, unless another denoiser is given."""
    sampler, steps = scheduler(name, prediction_type)
    return DiffusionPolicy(
        StateEncoder(specs(agent_pos=(2,))),
        denoiser or RampOracle(prediction_type, sampler.alphas_cumprod),
        Diffusion(sampler, steps),
        Normalizer.fit(specs({"agent_pos": (2,), "action": (2,)}), {"agent_pos": POSITIONS, "action": POSITIONS}),
        HORIZON,
        N_OBS,
        N_ACTION,
        action_dim=2,
        noise_draws=noise_draws,
    )


def small_unet() -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(2, N_OBS * 2, channels=(8, 16), kernel_size=3, step_embed_dim=16)


def ramp_batch(size: int) -> dict:
    pos = torch.rand(size, N_OBS, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    return {"obs": {"agent_pos": pos}, "action": ramp(pos.flatten(1))}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_of_a_perfect_denoiser_is_zero(prediction_type: str) -> None:
    loss = make_policy("ddpm", prediction_type, noise_draws=3).loss(ramp_batch(32), torch.Generator().manual_seed(0))
    assert loss < 1e-6


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_of_a_denoiser_of_another_type_is_not_zero(prediction_type: str) -> None:
    policy = make_policy("ddpm", prediction_type)
    for other in set(PREDICTION_TYPES) - {prediction_type}:
        policy.denoiser = RampOracle(other, policy.objective.alphas_cumprod)
        assert policy.loss(ramp_batch(32)) > 0.1


def test_noise_draws_encode_once_and_denoise_k_times() -> None:
    policy = make_policy(denoiser=small_unet(), noise_draws=5)
    encoded, denoised = [], []
    policy.encoder.register_forward_hook(lambda module, args, out: encoded.append(out))
    policy.denoiser.register_forward_hook(lambda module, args, out: denoised.append(args))
    loss = policy.loss(ramp_batch(4), torch.Generator().manual_seed(0))
    assert loss.isfinite()
    assert [len(features) for features in encoded] == [4]
    ((x, k, cond),) = denoised
    assert len(x) == len(k) == len(cond) == 4 * 5
    assert len(x.unique(dim=0)) == 20  # every row has noise of its own
    assert len(k.unique()) > 10
    assert len(cond.unique(dim=0)) == 4


def test_loss_draws_every_diffusion_step() -> None:
    policy = make_policy(denoiser=small_unet(), noise_draws=100)
    seen = []
    policy.denoiser.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    policy.loss(ramp_batch(16))
    assert seen[0].unique().tolist() == list(range(100))


@pytest.mark.parametrize("name", NAMES)
def test_sampling_changes_no_loss(name: str) -> None:
    policy = make_policy(name, "v_prediction", small_unet())
    before = policy.loss(ramp_batch(4), torch.Generator().manual_seed(0))
    policy.sample(torch.zeros(4, N_OBS, 2))
    assert torch.equal(policy.loss(ramp_batch(4), torch.Generator().manual_seed(0)), before)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_sampling_with_a_perfect_denoiser_returns_the_actions(name: str, prediction_type: str) -> None:
    batch = ramp_batch(6)
    policy = make_policy(name, prediction_type)
    sampled = policy.sample(policy.condition(batch["obs"]), torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampled, batch["action"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_samples_stay_in_the_range_of_the_data(name: str) -> None:
    policy = make_policy(name)
    sampled = policy.sample(torch.full((2, N_OBS, 2), 0.9), torch.Generator().manual_seed(0))  # the ramp ends at 1.32
    assert sampled.max() == 1
    assert sampled.min() > 0.8


@pytest.mark.parametrize(("name", "steps"), [("ddpm", 100), ("ddim", 16), ("dpm_solver", 10)])
def test_denoiser_is_called_once_a_step_from_noisy_to_clean(name: str, steps: int) -> None:
    policy = make_policy(name, denoiser=small_unet())
    seen = []
    policy.denoiser.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    policy.sample(torch.zeros(3, N_OBS, 2))
    assert len(seen) == steps
    assert all(k.dtype == torch.int64 and len(k.unique()) == 1 for k in seen)
    assert all(later[0] < earlier[0] for earlier, later in itertools.pairwise(seen))


def test_act_executes_ta_actions_from_the_latest_observation_on() -> None:
    pos = torch.tensor([[[90.0, 300.0], [100.0, 200.0]]])
    action = make_policy().act({"agent_pos": pos}, torch.Generator().manual_seed(0))
    ahead = 0.03 * 256 * torch.arange(N_ACTION)  # the ramp, in pixels
    torch.testing.assert_close(action, pos[:, -1:] + ahead[None, :, None], atol=0.05, rtol=0)


def test_act_scales_images_and_passes_their_features_on() -> None:
    class MeanColour(nn.Module):
        out_dim = 2

        def forward(self, obs: dict[str, Tensor]) -> Tensor:
            assert obs["image"].shape == (1, N_OBS, 3, 96, 96)
            return obs["image"].mean((3, 4))[..., :2]  # red and green

    policy = make_policy()
    policy.encoder = MeanColour()
    policy.normalizer.specs |= specs({"image": (3, 96, 96)})
    image = torch.zeros(1, N_OBS, 96, 96, 3, dtype=torch.uint8)
    image[..., 1] = 51  # green: a fifth
    first = policy.act({"image": image}, torch.Generator().manual_seed(0))[0, 0]
    torch.testing.assert_close(first, torch.tensor([256.0, 256 * 1.2]), atol=0.05, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_actions(name: str) -> None:
    policy, obs = make_policy(name, denoiser=small_unet()), {"agent_pos": torch.full((3, N_OBS, 2), 200.0)}
    first, again, other = (policy.act(obs, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_depends_on_its_own_generator_only(name: str) -> None:
    policy, cond = make_policy(name, denoiser=small_unet()), torch.zeros(8, N_OBS, 2)
    one = policy.sample(cond, seeded(*range(8)))
    assert len(one.unique(dim=0)) == 8
    two = policy.sample(cond, seeded(10, 1, 12, 13, 14, 15, 16, 17))
    assert (one == two).all(dim=(1, 2)).tolist() == [False, True, *[False] * 6]
    assert torch.equal(policy.sample(cond, seeded(*reversed(range(8)))), one.flip(0))


class Recorded(nn.Module):
    """Predicts the recorded actions, whatever it is asked."""

    actions: Tensor

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.actions


@pytest.fixture(scope="module")
def demonstrations(official_zarr: Path) -> PushTDemonstrations:
    return pusht_demonstrations({"agent_pos": (2,)}, path=str(official_zarr))


def recorded_policy(demonstrations: PushTDemonstrations) -> DiffusionPolicy:
    policy = make_policy(prediction_type="sample", denoiser=Recorded())
    policy.normalizer = demonstrations.normalizer
    return policy


def test_executed_actions_are_those_recorded_from_the_latest_observation_on(
    demonstrations: PushTDemonstrations,
) -> None:
    buffer, policy = demonstrations.buffer, recorded_policy(demonstrations)
    windows = demonstrations.windows(np.arange(5), HORIZON, N_OBS, N_ACTION)
    policy.denoiser.actions = windows.gather(torch.arange(len(windows)))["action"]
    seen = windows.table[:, :N_OBS].numpy()
    executed = policy.act({"agent_pos": torch.from_numpy(buffer.arrays["state"][seen, :2])}).numpy()

    latest = seen[:, -1]
    last = buffer.episode_ends[np.searchsorted(buffer.episode_ends, latest, side="right")] - 1
    frames = np.minimum(latest[:, None] + np.arange(N_ACTION), last[:, None])
    assert set(latest) == set(range(buffer.episode_ends[4])) - {
        end - 1 - i for end in buffer.episode_ends[:5] for i in range(HORIZON - N_OBS + 1 - N_ACTION)
    }
    np.testing.assert_allclose(executed[:, 0], buffer.arrays["action"][latest], atol=1e-3)
    np.testing.assert_allclose(executed, buffer.arrays["action"][frames], atol=1e-3)


def test_executing_recorded_windows_in_the_environment_relives_the_demonstration(
    demonstrations: PushTDemonstrations,
) -> None:
    buffer, policy, env = demonstrations.buffer, recorded_policy(demonstrations), PushTEnv(["agent_pos"])
    for episode in range(3):
        start = buffer.episode_starts[episode]
        windows = demonstrations.windows(np.array([episode]), HORIZON, N_OBS, N_ACTION)
        latest = windows.table[:, N_OBS - 1].numpy()
        states = buffer.arrays["state"][start:]
        env.reset(episode)
        before = env.observe()
        for now in range(0, 48, N_ACTION):
            (window,) = np.flatnonzero(latest == start + now)
            policy.denoiser.actions = windows.gather(torch.tensor([window]))["action"]
            obs = torch.from_numpy(np.stack([before["agent_pos"], env.observe()["agent_pos"]]))[None]
            for ahead, action in enumerate(policy.act({"agent_pos": obs})[0].numpy(), start=1):
                before = env.observe()
                env.step(action)
                np.testing.assert_allclose(env.state, states[now + ahead], atol=1e-2, err_msg=f"{episode=} {now=}")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_samples_that_are_not_finite_are_an_error_that_names_scheduler_and_steps(value: float) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return torch.full_like(x, value)

    policy = make_policy("ddim", "sample", Broken())
    action = policy.sample(ramp_batch(2)["obs"]["agent_pos"])
    with pytest.raises(ValueError, match="DDIMScheduler with num_inference_steps=16 sampled actions that are not"):
        check_finite(action, policy)
    check_finite(torch.zeros(2), policy)

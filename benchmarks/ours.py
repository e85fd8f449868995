"""What this project does, one task a process: `python -m benchmarks.ours TASK SETTINGS-AS-JSON`."""

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler

from benchmarks.turns import serve
from dp import devices, engines
from dp.data.batches import BatchOrder, ResidentLoader
from dp.denoisers import UNet1d
from dp.ema import EMA
from dp.encoders import CNNEncoder, ResNetEncoder, StateEncoder
from dp.kernels.calibration import bf16_pays
from dp.modalities import Normalizer, Spec
from dp.objectives import Diffusion
from dp.policy import DiffusionPolicy
from dp.rollouts.runner import EnvRunner
from dp.tasks.pusht.demonstrations import PushTDemonstrations
from dp.tasks.pusht.env import PushTEnv
from dp.types import Obs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
devices.set_up(DEVICE)
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "state": {"agent_pos": (2,), "block_pose": (4,)},
    "cnn": {"image": (3, 96, 96), "agent_pos": (2,)},
    "resnet18": {"image": (3, 96, 96), "agent_pos": (2,)},
}
ACTION = Spec("low_dim", (2,), "action")
SCHEDULERS = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}
Work = Callable[[], object]


def specs(shapes: dict[str, tuple[int, ...]]) -> dict[str, Spec]:
    return {name: Spec("rgb" if len(shape) == 3 else "low_dim", shape, name) for name, shape in shapes.items()}


def make_policy(
    network: dict[str, Any],
    noise_draws: int = 1,
    scheduler: str = "ddim",
    steps: int = 16,
    device: torch.device = DEVICE,
) -> DiffusionPolicy:
    torch.manual_seed(0)
    shapes = SHAPES[network["encoder"]]
    encoder = {"state": StateEncoder, "cnn": CNNEncoder, "resnet18": ResNetEncoder}[network["encoder"]](specs(shapes))
    denoiser = UNet1d(2, 2 * encoder.out_dim, network["channels"], network["kernel"], norm=network["norm"])
    return DiffusionPolicy(
        encoder,
        denoiser,
        Diffusion(SCHEDULERS[scheduler](beta_schedule="squaredcos_cap_v2", num_train_timesteps=100), steps),
        Normalizer({**specs(shapes), "action": ACTION}),
        horizon=16,
        n_obs_steps=2,
        n_action_steps=8,
        action_dim=2,
        noise_draws=noise_draws,
    ).to(device)


def make_loader(network: dict[str, Any], source: str = "auto") -> ResidentLoader:
    data = PushTDemonstrations(specs(SHAPES[network["encoder"]]), ACTION, source=source)
    windows = data.windows(data.train_episodes, 16, 2, 8)
    return ResidentLoader(windows, BatchOrder(len(windows), network["batch"], seed=0), DEVICE)


def train(network: dict[str, Any], noise_draws: int, calls: int) -> Work:
    """`calls` whole training steps, the gather, the schedule and the EMA included."""
    policy = make_policy(network, noise_draws).train()
    loader, ema = make_loader(network), EMA(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    step = engines.training_step("auto", engines.EagerStep(policy, optimizer, loader.load, 1.0, bf16_pays(DEVICE)))
    batches = iter(loader)

    def work() -> None:
        for _ in range(calls):
            step([next(batches)])
            schedule.step()
            ema.update(policy)
        synchronize()

    for _ in range(engines.WARM_UP + 1 if DEVICE.type == "cuda" else 0):
        work()
    return work


def load(network: dict[str, Any], calls: int) -> Work:
    loader = make_loader(network)
    inputs = iter(loader)

    def work() -> None:
        for part in islice(inputs, calls):
            loader.load(part)
        synchronize()

    return work


def denoise(network: dict[str, Any], scheduler: str, steps: int, batch: int) -> Work:
    policy = make_policy(network, scheduler=scheduler, steps=steps).eval().requires_grad_(False)
    engines.speed_up_sampling("auto", policy)
    obs = {name: torch.rand(batch, 2, *shape, device=DEVICE) for name, shape in SHAPES[network["encoder"]].items()}
    cond = policy.condition(obs)

    def work() -> None:
        policy.sample(cond)
        synchronize()

    work()
    return work


def update_ema(network: dict[str, Any], calls: int) -> Work:
    policy = make_policy(network)
    ema = EMA(policy)

    def work() -> None:
        for _ in range(calls):
            ema.update(policy)
        synchronize()

    return work


class Zigzag:
    """No network: actions that depend on nothing, and keep every episode busy to its end."""

    def act(self, obs: Obs, generator: object = None) -> torch.Tensor:
        towards = torch.tensor([[100.0, 100.0], [400.0, 120.0], [380.0, 400.0], [120.0, 380.0]]).repeat(2, 1)
        return towards.expand(len(next(iter(obs.values()))), 8, 2)


def rollout(n_episodes: int, max_steps: int, n_workers: int, network: dict[str, Any] | None = None) -> Work:
    """Test episodes with images; without a network it is the environments' time alone."""
    runner = EnvRunner(
        partial(PushTEnv, ["image", "agent_pos"]), 2, n_episodes, 100_000, 0, max_steps, n_episodes, n_workers, 0
    )
    if network is None:
        return lambda: runner.run(Zigzag(), torch.device("cpu"))  # type: ignore[arg-type]
    policy = make_policy(network).eval().requires_grad_(False)
    engines.speed_up_sampling("auto", policy)
    return lambda: runner.run(policy, DEVICE)


def checkpoint(network: dict[str, Any], read: bool) -> Work:
    """Writes, or reads, all that a training run keeps."""
    from workspaces import checkpoint

    policy = make_policy(network)
    ema, optimizer = EMA(policy), torch.optim.AdamW(policy.parameters(), fused=True)
    for p in policy.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = {"policy": policy.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict()}
    path = Path(tempfile.mkdtemp()) / "last.pt"
    checkpoint.save(path, state)
    return (lambda: checkpoint.load(path)) if read else (lambda: checkpoint.save(path, state))


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def gpu_memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**20


TASKS: dict[str, Callable[..., Work]] = {
    "train": train,
    "load": load,
    "denoise": denoise,
    "ema": update_ema,
    "rollout": rollout,
    "checkpoint": checkpoint,
}

if __name__ == "__main__":
    serve(TASKS[sys.argv[1]](**json.loads(sys.argv[2])), gpu_memory if DEVICE.type == "cuda" else None)

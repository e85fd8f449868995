"""LeRobot's diffusion policy with its own training step and its own sampling loop, one task a process.

Runs in an environment with `lerobot==0.4.4`, which this project is not installed in. The batch lies in memory: its data
loader is not part of what is timed.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.scripts.lerobot_train import update_policy
from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

from benchmarks.turns import serve

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.set_float32_matmul_precision("high")  # TF32, as LeRobot's own training script allows it
Work = Callable[[], object]


def make_policy(network: dict[str, Any], **settings: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (2,))}
    if network["encoder"] == "state":
        features["observation.environment_state"] = PolicyFeature(FeatureType.ENV, (4,))
    else:
        features["observation.image"] = PolicyFeature(FeatureType.VISUAL, (3, 96, 96))
    config = DiffusionConfig(
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        crop_shape=(84, 84) if network["encoder"] != "state" else None,
        down_dims=tuple(network["channels"]),
        kernel_size=network["kernel"],
        device=DEVICE.type,
        **settings,
    )
    return DiffusionPolicy(config).to(DEVICE)


def make_batch(network: dict[str, Any], batch: int) -> dict[str, torch.Tensor]:
    observations = {"observation.state": torch.rand(batch, 2, 2)}
    if network["encoder"] == "state":
        observations["observation.environment_state"] = torch.rand(batch, 2, 4)
    else:
        observations["observation.image"] = torch.rand(batch, 2, 3, 96, 96)
    made = {
        **observations,
        "action": torch.rand(batch, 16, 2),
        "action_is_pad": torch.zeros(batch, 16, dtype=torch.bool),
    }
    return {name: x.to(DEVICE) for name, x in made.items()}


def train(network: dict[str, Any], calls: int) -> Work:
    policy = make_policy(network)
    batch = make_batch(network, network["batch"])
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    schedule = policy.config.get_scheduler_preset().build(optimizer, 200_000)
    accelerator = Accelerator(cpu=DEVICE.type == "cpu")
    meters = {name: AverageMeter(name, ":.3f") for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
    tracker = MetricsTracker(network["batch"], 25_650, 206, meters, initial_step=0)

    def work() -> None:
        for _ in range(calls):
            update_policy(tracker, policy, batch, optimizer, 10.0, accelerator, schedule)
        synchronize()

    return work


def denoise(network: dict[str, Any], scheduler: str, steps: int, batch: int) -> Work:
    policy = make_policy(network, noise_scheduler_type=scheduler.upper(), num_inference_steps=steps).eval()
    observed = make_batch(network, batch)
    observed["observation.images"] = observed.pop("observation.image").unsqueeze(2)
    with torch.no_grad():
        cond = policy.diffusion._prepare_global_conditioning(observed)

    @torch.no_grad()
    def work() -> None:
        policy.diffusion.conditional_sample(batch, global_cond=cond)
        synchronize()

    return work


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def gpu_memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**20


TASKS: dict[str, Callable[..., Work]] = {"train": train, "denoise": denoise}

if __name__ == "__main__":
    serve(TASKS[sys.argv[1]](**json.loads(sys.argv[2])), gpu_memory if DEVICE.type == "cuda" else None)

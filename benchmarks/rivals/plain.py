"""The paper's training loop as it is usually written in PyTorch, one task a process.

`DataLoader` over float32 windows, one sample at a time, all H frames of it; `nn.Conv1d`; AdamW tensor by tensor; the
EMA in a Python loop; the loss read back at every step.
"""

import copy
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.ours import ACTION, DEVICE, SHAPES, Work, make_policy, specs, synchronize
from benchmarks.rivals.plain_unet import PlainUNet1d
from benchmarks.turns import serve
from dp.tasks.pusht.demonstrations import PushTDemonstrations


class FloatWindows(Dataset):
    """Every array in float32, every window cut and copied on demand."""

    def __init__(self, network: dict[str, Any]) -> None:
        data = PushTDemonstrations(specs(SHAPES[network["encoder"]]), ACTION)
        windows = data.windows(data.train_episodes, 16, 2, 8)
        self.table = windows.table.numpy()
        self.obs = {name: x.numpy().astype(np.float32) for name, x in windows.obs.items()}
        self.action = windows.action.numpy()

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rows = self.table[index]
        obs = {name: x[rows] for name, x in self.obs.items()}  # H of them, of which the policy sees To
        if "image" in obs:
            obs["image"] = np.moveaxis(obs["image"], -1, 1) / 255
        return {"obs": obs, "action": self.action[rows]}


class PlainPolicy(nn.Module):
    """The encoders are this project's, in torch's default memory format; the crop is one for the whole batch."""

    def __init__(self, network: dict[str, Any]) -> None:
        super().__init__()
        ours = make_policy(network, device=torch.device("cpu"))
        self.encoder = ours.encoder.to(memory_format=torch.contiguous_format)
        self.denoiser = PlainUNet1d(
            2, 2 * self.encoder.out_dim, network["channels"], network["kernel"], 128, 8, network["norm"],
            "scale_bias", "concat", "concat",
        )  # fmt: skip
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")

    def loss(self, batch: dict[str, Any]) -> Tensor:
        obs = {name: x[:, :2] for name, x in batch["obs"].items()}
        cond = self.encoder(obs).flatten(1)
        noise = torch.randn(batch["action"].shape, device=cond.device)
        k = torch.randint(0, 100, (len(cond),), device=cond.device)
        noisy = self.noise_scheduler.add_noise(batch["action"], noise, k)
        return F.mse_loss(self.denoiser(noisy, k, cond), noise)


def batches(network: dict[str, Any], n_workers: int) -> Iterator[dict[str, Any]]:
    loader = DataLoader(
        FloatWindows(network),
        network["batch"],
        shuffle=True,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        pin_memory=DEVICE.type == "cuda",
    )
    while True:
        yield from loader


def load(network: dict[str, Any], calls: int, n_workers: int) -> Work:
    source = batches(network, n_workers)

    def work() -> None:
        for _ in range(calls):
            to_device(next(source))
        synchronize()

    return work


def to_device(batch: dict[str, Any]) -> dict[str, Any]:
    obs = {name: x.to(DEVICE, non_blocking=True) for name, x in batch["obs"].items()}
    return {"obs": obs, "action": batch["action"].to(DEVICE, non_blocking=True)}


def train(network: dict[str, Any], calls: int, n_workers: int) -> Work:
    policy = PlainPolicy(network).to(DEVICE).train()
    averaged = copy.deepcopy(policy)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-4, foreach=False)
    source = batches(network, n_workers)

    def work() -> None:
        for _ in range(calls):
            loss = policy.loss(to_device(next(source)))
            loss.item()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            average(averaged, policy)
        synchronize()

    return work


@torch.no_grad()
def average(averaged: nn.Module, policy: nn.Module, decay: float = 0.999) -> None:
    for mean, value in zip(averaged.parameters(), policy.parameters(), strict=True):
        mean.mul_(decay)
        mean.add_(value.data.to(dtype=mean.dtype), alpha=1 - decay)


def update_ema(network: dict[str, Any], calls: int) -> Work:
    policy = PlainPolicy(network).to(DEVICE)
    averaged = copy.deepcopy(policy)

    def work() -> None:
        for _ in range(calls):
            average(averaged, policy)
        synchronize()

    return work


def denoise(network: dict[str, Any], scheduler: str, steps: int, batch: int) -> Work:
    policy = PlainPolicy(network).to(DEVICE).eval().requires_grad_(False)
    sampler: Any = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[scheduler](
        num_train_timesteps=100, beta_schedule="squaredcos_cap_v2"
    )
    cond = torch.randn(batch, 2 * policy.encoder.out_dim, device=DEVICE)

    def work() -> None:
        x = torch.randn(batch, 16, 2, device=DEVICE)
        sampler.set_timesteps(steps)
        for k in sampler.timesteps:
            x = sampler.step(policy.denoiser(x, k.expand(batch).to(DEVICE), cond), k, x).prev_sample
        synchronize()

    return work


TASKS: dict[str, Callable[..., Work]] = {"train": train, "load": load, "denoise": denoise, "ema": update_ema}

if __name__ == "__main__":
    serve(TASKS[sys.argv[1]](**json.loads(sys.argv[2])))

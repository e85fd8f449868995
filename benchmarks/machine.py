"""What the machine is, and how fast it can be at all: the ceilings that floors are counted from."""

import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ours import DEVICE, SHAPES, make_policy, synchronize
from dp.kernels.calibration import bf16_pays
from dp.processes import N_CORES


def describe(threads: int) -> str:
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers", "gym-pusht"))
    gpu = f", {torch.cuda.get_device_name()}" if DEVICE.type == "cuda" else ", no GPU"
    cores = f"{torch.backends.cpu.get_cpu_capability()}, {N_CORES} cores, {threads} threads"
    return f"{cpu} ({cores}){gpu}, Python {platform.python_version()}, {versions}"


@dataclass(frozen=True)
class Ceilings:
    """The best of a few measurements: matrix products in the precision that training takes, and copies."""

    train_flops: float
    sample_flops: float
    bytes_per_s: float
    disk_bytes_per_s: float

    @classmethod
    def measure(cls) -> "Ceilings":
        bf16 = bf16_pays(DEVICE)
        return cls(
            _matmul_flops(torch.bfloat16 if bf16 else torch.float32), _matmul_flops(torch.float32), _copy(), _disk()
        )

    def __str__(self) -> str:
        return (
            f"matrix products {self.train_flops / 1e12:.3g} TFLOP/s in training's precision and "
            f"{self.sample_flops / 1e12:.3g} in sampling's, memory {self.bytes_per_s / 1e9:.3g} GB/s, "
            f"disk {self.disk_bytes_per_s / 1e6:.3g} MB/s"
        )

    def train_s(self, network: dict, noise_draws: int) -> float:
        """No step can be faster: its products at the peak, then 58 bytes a parameter through memory.

        Weight, gradient, two moments and the average, read and written by backward, clipping, AdamW and EMA.
        """
        meta = torch.device("meta")
        policy = make_policy(network, noise_draws, device=meta)
        obs = {n: torch.rand(network["batch"], 2, *s, device=meta) for n, s in SHAPES[network["encoder"]].items()}
        with FlopCounterMode(display=False) as counter:
            policy.loss({"obs": obs, "action": torch.rand(network["batch"], 16, 2, device=meta)}).backward()
        parameters = sum(p.numel() for p in policy.parameters())
        return counter.get_total_flops() / self.train_flops + 58 * parameters / self.bytes_per_s

    def denoise_s(self, network: dict, steps: int, batch: int) -> float:
        """The products at the peak, or reading the weights once a step, whichever takes longer."""
        meta = torch.device("meta")
        policy = make_policy(network, device=meta)
        parameters = sum(p.numel() for p in policy.denoiser.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            cond = torch.rand(batch, 2 * policy.encoder.out_dim, device=meta)
            policy.denoiser(torch.rand(batch, 16, 2, device=meta), torch.zeros(batch, device=meta), cond)
        return steps * max(counter.get_total_flops() / self.sample_flops, 4 * parameters / self.bytes_per_s)


def _matmul_flops(dtype: torch.dtype) -> float:
    best = 0.0
    for size in (1024, 2048) if DEVICE.type == "cpu" else (4096, 8192):
        a, b = torch.rand(size, size, device=DEVICE).to(dtype), torch.rand(size, size, device=DEVICE).to(dtype)
        best = max(best, 2 * size**3 / _fastest(lambda a=a, b=b: a @ b))
    return best


def _copy() -> float:
    source = torch.ones(2**26, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source))


def _disk() -> float:
    data = os.urandom(2**26)

    def write() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    return len(data) / _fastest(write, rounds=3)


def _fastest(work: Callable[[], object], rounds: int = 8) -> float:
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        synchronize()
        best = min(best, time.perf_counter() - start)
    return best

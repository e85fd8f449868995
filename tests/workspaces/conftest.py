"""Runs `run.py` as a user does: another process, the real configuration, made small by overrides."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli import RUN, run_py

SMALL = [
    "+experiment=pusht_state_small",
    "denoiser.channels=[16,32]",
    "denoiser.step_embed_dim=16",
    "device=cpu",
    "dataset.val_ratio=0.2",
    "workspace.num_steps=24",
    "workspace.batch_size=16",
    "workspace.every={log: 5, validate: 8, rollout: 12, checkpoint: 3}",
    "lr_schedule.num_warmup_steps=2",
    "env_runner.n_episodes=3",
    "env_runner.n_train_episodes=1",
    "env_runner.max_steps=20",
    "env_runner.n_workers=0",
    "env_runner.n_videos=1",
    "logger.mode=disabled",
]

TIMED = ("time/", "train/samples_per_s", "rollout/inference_ms")
"""Metrics that a clock has a part in."""


@pytest.fixture
def command(small_zarr: Path) -> Callable[..., list[str]]:
    """The command line of a small training run: `command("seed=1")`."""

    def make(*overrides: str, base: list[str] = SMALL) -> list[str]:
        given = [o.partition("=")[0] for o in overrides]
        kept = [o for o in base if o.partition("=")[0] not in given]
        data = [] if any(o.startswith("checkpoint=") for o in overrides) else [f"dataset.path={small_zarr}"]
        flags = [o for o in overrides if o.startswith("-")]  # argparse wants them before the overrides
        return [sys.executable, str(RUN), *flags, *kept, *data, *(o for o in overrides if o not in flags)]

    return make


@pytest.fixture
def run(command: Callable[..., list[str]], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the small training in `tmp_path` to its end."""

    def call(*overrides: str, base: list[str] = SMALL, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return run_py(*command(*overrides, base=base)[2:], cwd=tmp_path, timeout=timeout)

    return call


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what a clock has a part in."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    """The final state and the metrics of two runs agree to the bit."""
    states = [torch.load(d / "checkpoints/last.pt", weights_only=True) for d in (one, other)]
    for part in ("step", "policy", "ema", "optimizer", "lr_schedule", "rng", "best", "pending"):
        assert_equal(states[0][part], states[1][part], part)
    assert metrics(one) == metrics(other)
    for folder in ("rollouts", "media", "checkpoints"):
        assert sorted(p.name for p in one.glob(f"{folder}/*")) == sorted(p.name for p in other.glob(f"{folder}/*"))
    for file in (one / "rollouts").iterdir():
        assert file.read_bytes() == (other / "rollouts" / file.name).read_bytes()


def assert_equal(a: object, b: object, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor), where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert isinstance(b, dict), where
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert isinstance(b, list), where
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{i}]")
    else:
        assert a == b, where

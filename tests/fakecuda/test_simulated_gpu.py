"""On a simulated GPU: captures survive other threads and failures, and neither a step nor a denoising loop waits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
HEADERS = list(Path(torch.__file__).parents[1].glob("nvidia/*/include/cuda_runtime_api.h"))
pytestmark = pytest.mark.skipif(
    torch.version.cuda is None or shutil.which("g++") is None or not HEADERS,
    reason="needs g++, a CUDA build of torch, and the headers that its wheels bring",
)
compiles = pytest.mark.skipif("DP_SIMULATED_COMPILE" not in os.environ, reason="minutes: set DP_SIMULATED_COMPILE=1")


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path):
    """Runs Python in the repository, on the simulated device."""
    build = os.environ.get("FAKECUDA_BUILD", str(tmp_path_factory.mktemp("fakecuda")))

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [HERE / "run", sys.executable, *arguments],
            cwd=HERE.parents[1],
            env={**os.environ, "FAKECUDA_BUILD": build, **environment},
            capture_output=True,
            text=True,
            timeout=1500,
        )

    return run


def check(simulated, into: Path, *arguments: str) -> dict:
    result = simulated("-m", "benchmarks.gpu_check", "--into", str(into), *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return json.loads((into / "gpu_check.json").read_text())


def test_no_step_and_no_loop_waits_and_graphs_launch_little(simulated, tmp_path) -> None:
    """`sweep`: graphs are captured while DataLoaders pin memory. One process for all, because torch's start is slow."""
    parts = ("failed_capture", "waits", "combinations", "denoising_agrees", "distil", "sweep")
    figures = check(simulated, tmp_path, "--no-compile", "--tiny", *parts)
    assert figures["sweep"]["ok"]
    assert figures["distil"]["ok"]
    assert figures["simulated"]
    assert figures["failed_capture"]["ok"]
    of_all = figures["waits"] | figures["combinations"]
    counted = {name: part for name, part in of_all.items() if isinstance(part, dict)}
    assert len([name for name in counted if name.startswith("train, flow, ")]) == 4
    assert {name: part["waits"] for name, part in counted.items()} == dict.fromkeys(counted, 0)
    launches = {name: part["launches"] for name, part in counted.items()}
    assert launches["train, graph without a compiler"] < 30 < 300 < launches["train, eager"]
    for loop in ("ddim-16", "ddpm-100"):
        assert launches[f"denoise {loop}, graph"] < launches[f"denoise {loop}, eager"] / 4


@compiles
def test_every_engine_works_without_falling_back(simulated, tmp_path) -> None:
    figures = check(simulated, tmp_path, "--tiny", "waits", "distil", "sweep")
    assert figures["waits"]["train, graph"]["launches"] < figures["waits"]["train, compile"]["launches"]
    assert figures["sweep"]["ok"]
    assert figures["distil"]["ok"]


def test_a_gpu_is_chosen_by_its_number(simulated) -> None:
    code = (
        "import torch; from dp import devices; devices.set_up(devices.choose_device('cuda:1'));"
        "print(torch.cuda.current_device(), torch.get_float32_matmul_precision()); devices.choose_device('cuda:2')"
    )
    result = simulated("-c", code, FAKE_GPUS="2")
    assert result.stdout.split() == ["1", "high"]
    assert "device=cuda:2, but torch finds 2 CUDA device(s): cuda:0 to cuda:1" in result.stderr

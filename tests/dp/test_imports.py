"""A robot imports `dp.policy` alone, and gets nothing that it has no use for."""

import subprocess
import sys

import pytest

UNUSED = [
    "zarr",
    "pygame",
    "gym_pusht",
    "pymunk",
    "shapely",
    "cv2",
    "gymnasium",
    "pyarrow",
    "h5py",
    "hydra",
    "omegaconf",
    "wandb",
]


@pytest.mark.parametrize("module", ["dp.policy", "dp.denoisers", "dp.encoders", "dp.objectives", "dp.engines"])
def test_a_policy_loads_no_simulator_no_data_format_and_no_configuration(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert set(loaded) & {*UNUSED, "workspaces"} == set()

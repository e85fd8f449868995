"""Chooses the device of a run, and sets what that implies for the whole process."""

import logging
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from dp.distributed import LOCAL_RANK, LOCAL_WORLD

log = logging.getLogger(__name__)

DRIVERS = {"11": 450, "12": 525, "13": 580}
"""Oldest NVIDIA driver for each major version of CUDA (CUDA release notes, "minor version compatibility")."""

DRIVER_FILE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Machine:
    """The facts that decide whether torch can use the NVIDIA GPUs of a machine.

    build: the CUDA version torch was built for, or None. driver: the version of the driver, or None. gpus: name and
    compute capability of each GPU that torch sees. architectures: what torch has kernels for (`sm_90`), or code that a
    driver compiles (`compute_90`). visible: CUDA_VISIBLE_DEVICES.
    """

    build: str | None
    driver: str | None
    gpus: tuple[tuple[str, tuple[int, int]], ...]
    architectures: tuple[str, ...]
    visible: str | None

    def fault(self, index: int = 0) -> str | None:
        """Why GPU `index` cannot be used, and what to do, in one line; None if it can."""
        seen = len(self.gpus)
        if not seen:
            return f"torch finds no CUDA device here{self._cause()}"
        if index >= seen:
            visible = "not set" if self.visible is None else self.visible
            last = f"cuda:0 to cuda:{seen - 1}" if seen > 1 else "cuda:0"
            return f"torch finds {seen} CUDA device(s): {last}. CUDA_VISIBLE_DEVICES, which chooses them, is {visible}"
        name, capability = self.gpus[index]
        if not runs_on(capability, self.architectures):
            return (
                f"{name} (sm_{capability[0]}{capability[1]}) is too old for this torch, which has kernels for "
                f"{', '.join(self.architectures)}: {_other_build('cu126')}"
            )
        return None

    def _cause(self) -> str:
        if self.visible is not None:
            return f" (CUDA_VISIBLE_DEVICES={self.visible!r} limits what it sees)"
        if self.driver is None:
            return " (CUDA_VISIBLE_DEVICES is not set, and no NVIDIA driver is loaded)"
        if self.build is None:
            return f": this torch is built for CPUs, the NVIDIA driver is {self.driver}: {_other_build('cu126')}"
        needed = DRIVERS.get(self.build.partition(".")[0], 0)
        if int(self.driver.partition(".")[0]) < needed:
            return (
                f": the NVIDIA driver is {self.driver}, but this torch (CUDA {self.build}) needs {needed} or later: "
                f"update the driver, or {_other_build('cu126')}"
            )
        return f" although the NVIDIA driver {self.driver} is loaded: check the output of nvidia-smi"


def _other_build(cuda: str) -> str:
    return f"pip install torch and torchvision built for {cuda} (https://pytorch.org/get-started shows the command)"


def runs_on(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Whether torch has kernels for a GPU: of its major version and no later minor one, or code for any earlier one."""
    for architecture in architectures:
        kind, _, digits = architecture.rstrip("af").partition("_")
        major, minor = int(digits[:-1]), int(digits[-1])
        if (kind == "sm" and major == capability[0] and minor <= capability[1]) or (
            kind == "compute" and (major, minor) <= capability
        ):
            return True
    return not architectures  # a build that does not say


def this_machine() -> Machine:
    """The facts of this machine. Starts no CUDA context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own words about the driver
        n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = tuple((torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in range(n))
    version = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", DRIVER_FILE.read_text()) if DRIVER_FILE.is_file() else None
    architectures = tuple(torch.cuda.get_arch_list()) if n and torch.version.hip is None else ()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return Machine(torch.version.cuda, version and version.group(), gpus, architectures, visible)


def choose_device(name: str) -> torch.device:
    """auto | cpu | cuda | cuda:N | mps -> a device. auto: cuda if it works, else the CPU.

    Logs a warning if auto skips an NVIDIA GPU. Raises ValueError for another name and for a missing device.
    """
    match = re.fullmatch(r"(auto|cpu|mps|cuda)(?:(?<=cuda):(\d+))?", str(name))
    if match is None:
        raise ValueError(f"device={name}, expected auto, cpu or cuda (cuda:N for one of several GPUs, mps on a Mac)")
    kind, index = match.group(1), int(match.group(2) or LOCAL_RANK)
    if kind == "cpu":
        return torch.device("cpu")
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError("device=mps, but torch finds no Apple GPU here: use device=cpu, or device=auto")
        return torch.device("mps")
    machine = this_machine()
    fault = machine.fault(index)
    if fault is None:
        named = match.group(2) is not None or LOCAL_WORLD > 1
        return torch.device("cuda", index) if named else torch.device("cuda")
    if kind == "cuda":
        raise ValueError(f"device={name}, but {fault}. Or use device=cpu, or device=auto")
    if machine.gpus or (machine.driver is not None and machine.visible is None):
        log.warning("device=auto chose the CPU: %s", fault)
    return torch.device("cpu")


def set_up(device: torch.device) -> None:
    """Makes a GPU the current one of this process, and lets it multiply float32 matrices in TF32."""
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
        torch.set_float32_matmul_precision("high")

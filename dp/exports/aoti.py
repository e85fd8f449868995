"""A policy compiled ahead of time (torch.export and AOTInductor), for a process without Python or without our code."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dp.exports.actor import Actor

FILE = "policy.pt2"


def write(actor: Actor, file: Path) -> None:
    """Compiles for this machine's processor, which takes minutes. Raises ValueError without a C++ compiler."""
    if not any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++"))):
        raise ValueError("format=aoti needs a C++ compiler (g++ or clang++): install one, or use format=onnx")
    torch._inductor.aoti_compile_and_package(actor.exported(), package_path=str(file))


def load(file: Path) -> Callable[..., Tensor]:
    """What the file computes. It runs the code in the file: load only your own."""
    return torch._inductor.aoti_load_package(str(file))

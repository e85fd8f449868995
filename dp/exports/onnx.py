"""A policy as an ONNX file, for onnxruntime and other engines."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dp.exports.actor import Actor

FILE = "policy.onnx"

EMBEDDED_BYTES = 1 << 30
"""Most bytes of weights inside the file. Larger ones lie in a second file, since protobuf ends at 2 GB."""


def write(actor: Actor, file: Path) -> None:
    """Raises ValueError without the packages that it needs."""
    _check_installed()
    for name in ("onnxscript", "onnx_ir"):  # they tell of every node
        logging.getLogger(name).setLevel(logging.WARNING)
    inputs = ["noise", *actor.names]
    program = torch.onnx.export(
        actor.exported(), dynamo=True, input_names=inputs, output_names=["action"], verbose=False
    )
    assert program is not None
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in actor.state_dict().values())
    program.save(str(file), external_data=n_bytes > EMBEDDED_BYTES)


def load(file: Path) -> Callable[..., Tensor]:
    """What the file computes, in onnxruntime with as many threads as torch has."""
    _check_installed()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        (action,) = session.run(None, {name: x.numpy() for name, x in zip(names, tensors, strict=True)})
        return torch.from_numpy(action)

    return run


def _check_installed() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"format=onnx needs {', '.join(missing)}: pip install -e '.[onnx]'")

"""How a training step and a denoising loop run: as written, with a compiled loss, or as CUDA graphs.

`EagerStep` is the reference; the others do the same arithmetic on the same random numbers with fewer launches.
"""

import copy
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from dp.policy import DiffusionPolicy
from dp.types import Batch, Generator

Inputs = Any
"""What a loader yields: a tensor, or a nested dict of tensors, always of the same shapes."""

WARM_UP = 3
"""Calls that run eagerly before a graph is captured, so that everything that is made on first use has been made."""


def training_step(engine: Literal["auto", "eager", "compile", "graph"], step: "EagerStep") -> "Step":
    """`step` on `engine`; where that fails at its start, on the next simpler one, with a warning.

    auto: graph on CUDA, eager elsewhere.
    """
    choices: dict[str, Callable[[], Step]] = {
        "graph": lambda: GraphStep(compiled(step)),
        "compile": lambda: compiled(step),
        "eager": lambda: step,
    }
    names = list(choices)
    first = names.index(choose(engine, step.policy.device))
    return FallingBack({name: choices[name] for name in names[first:]})


def choose(engine: str, device: torch.device) -> str:
    """The engine that `engine` means on `device`. Raises ValueError for one that is unknown, or cannot run there."""
    if engine not in ("auto", "eager", "compile", "graph"):
        raise ValueError(f"workspace.engine={engine}, expected auto, eager, compile or graph")
    if engine == "graph" and device.type != "cuda":
        raise ValueError(
            f"workspace.engine=graph needs a CUDA device, this run is on {device.type}: use workspace.engine=auto"
        )
    if engine == "auto":
        return "graph" if device.type == "cuda" else "eager"
    return engine


Step = Callable[[list[Inputs]], Float[Tensor, "2"]]
"""One optimizer step on the gradients of a list of inputs. Returns (mean loss, gradient norm), on the device."""


@runtime_checkable
class Graph(Protocol):
    """Captured work, ready to run again: a `torch.cuda.CUDAGraph`."""

    def replay(self) -> None: ...


class EagerStep:
    """Loss, gradient, clipping, optimizer. Nothing is read back, so the host never waits for the device.

    Args:
        load: what the loader yields -> a batch on the device.
        max_grad_norm: gradients are scaled down to this norm.
        bf16: whether the loss is computed under bfloat16 autocast.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        optimizer: torch.optim.Optimizer,
        load: Callable[[Inputs], Batch],
        max_grad_norm: float,
        bf16: bool,
    ) -> None:
        self.policy, self.optimizer, self.load = policy, optimizer, load
        self.max_grad_norm, self.bf16 = max_grad_norm, bf16
        self.loss: Callable[[Batch], Tensor] = policy.loss
        for group in optimizer.param_groups:  # a checkpoint may have been written by another engine
            group |= {"lr": float(group["lr"])} | ({"capturable": False} if "capturable" in group else {})

    def __call__(self, inputs: list[Inputs]) -> Float[Tensor, "2"]:
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for part in inputs:
            with torch.autocast(self.policy.device.type, torch.bfloat16) if self.bf16 else nullcontext():
                loss = self.loss(self.load(part)) / len(inputs)
            loss.backward()
            losses.append(loss.detach())
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return torch.stack([torch.stack(losses).sum(), grad_norm])


def compiled(step: EagerStep) -> EagerStep:
    """`step` with its loss compiled by TorchInductor, drawing eager's random numbers."""
    faster = copy.copy(step)
    faster.loss = cast(Callable[[Batch], Tensor], torch.compile(step.loss, options={"fallback_random": True}))
    return faster


class GraphStep:
    """All of `step` in one CUDA graph, from the gather to the optimizer: a single launch.

    The first steps run as they are and warm up what is then captured, so no step is made twice. The learning rate
    becomes a tensor that a schedule fills, and the default generator's offset is advanced by each replay, so values
    change from step to step as they do eagerly.
    """

    def __init__(self, step: EagerStep) -> None:
        self.step, self.device = step, step.policy.device
        self._stream, self._calls = torch.cuda.Stream(self.device), 0
        self._graph: Graph | None = None
        for group in step.optimizer.param_groups:
            group |= {"lr": torch.tensor(float(group["lr"]), device=self.device), "capturable": True}

    def __call__(self, inputs: list[Inputs]) -> Float[Tensor, "2"]:
        self._calls += 1
        if self._calls <= WARM_UP:
            return on_stream(self._stream, lambda: self.step(inputs))
        if self._graph is None:
            self._inputs = _to(inputs, self.device)
            self._graph, self._result = capture(self._stream, lambda: self.step(self._inputs))
        for static, given in zip(_leaves(self._inputs), _leaves(inputs), strict=True):
            static.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._result.clone()


class FallingBack:
    """The first of `choices` that works: one that fails in its first calls is given up with a warning."""

    def __init__(self, choices: dict[str, Callable[[], Step]]) -> None:
        self._choices = choices
        self._calls = 0
        self._begin(next(iter(choices)))

    def _begin(self, name: str) -> None:
        self.name = name
        self._step = self._choices.pop(name)()

    def __call__(self, inputs: list[Inputs]) -> Float[Tensor, "2"]:
        self._calls += 1
        try:
            return self._step(inputs)
        except Exception as error:
            if self._calls > WARM_UP + 1 or not self._choices:
                raise
            failed, reason = self.name, f"{type(error).__name__}: {error}".splitlines()[0]
            self._begin(next(iter(self._choices)))
            warnings.warn(f"workspace.engine={failed} failed, going on with {self.name}: {reason}", stacklevel=2)
            self._calls = 0
            return self(inputs)


class GraphDenoising:
    """`policy.denoise` as one CUDA graph for each batch size.

    Without graphs where the objective draws noise, which a graph would repeat, and, with a warning, where a capture
    fails.
    """

    def __init__(self, policy: DiffusionPolicy) -> None:
        self._denoise = policy.denoise
        self._stream = torch.cuda.Stream(policy.device)
        self._graphs: dict[int, tuple[Graph, Tensor, Tensor, Tensor]] = {}
        self._capturable: bool | None = None

    def __call__(
        self, noise: Float[Tensor, "B H Da"], cond: Float[Tensor, "B To Do"], generator: Generator = None
    ) -> Float[Tensor, "B H Da"]:
        if self._capturable is None:
            self._capturable = not self._draws_noise(noise, cond)
        if self._capturable and len(noise) not in self._graphs:
            try:
                self._graphs[len(noise)] = self._capture(noise.clone(), cond.clone())
            except Exception as error:
                self._capturable = False
                warnings.warn(f"denoising runs without CUDA graphs: {type(error).__name__}: {error}", stacklevel=2)
        if not self._capturable:
            return self._denoise(noise, cond, generator)
        graph, static_noise, static_cond, result = self._graphs[len(noise)]
        static_noise.copy_(noise)
        static_cond.copy_(cond)
        graph.replay()
        return result.clone()

    def _capture(self, noise: Tensor, cond: Tensor) -> tuple[Graph, Tensor, Tensor, Tensor]:
        on_stream(self._stream, lambda: self._denoise(noise, cond))
        graph, result = capture(self._stream, lambda: self._denoise(noise, cond))
        return graph, noise, cond, result

    def _draws_noise(self, noise: Tensor, cond: Tensor) -> bool:
        """Whether denoising takes anything from its generator."""
        generator = torch.Generator(noise.device)
        before = generator.get_state()
        self._denoise(noise, cond, generator)
        return not torch.equal(generator.get_state(), before)


def speed_up_sampling(engine: str, policy: DiffusionPolicy) -> None:
    """Lets `policy` denoise with CUDA graphs, where `engine` means them. Its weights may change, in place."""
    if choose(engine, policy.device) == "graph":
        policy.denoise = GraphDenoising(policy)  # type: ignore[method-assign]


def on_stream(stream: torch.cuda.Stream, work: Callable[[], Tensor]) -> Tensor:
    """Runs `work` on a side stream, in order with what comes before and after: how graphs want to be warmed up."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture(stream: torch.cuda.Stream, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
    """The graph of `work`, and the tensor in which each replay leaves its result. Runs nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = work()
    return graph, result


def _to(inputs: Inputs, device: torch.device) -> Inputs:
    if isinstance(inputs, list):
        return [_to(part, device) for part in inputs]
    if isinstance(inputs, dict):
        return {name: _to(part, device) for name, part in inputs.items()}
    return inputs.to(device)


def _leaves(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    parts = inputs.values() if isinstance(inputs, dict) else inputs
    return [leaf for part in parts for leaf in _leaves(part)]

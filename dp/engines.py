"""Engines that run a training step or a denoising loop: as written, compiled, or as CUDA graphs.

`EagerStep` is the reference; the others do the same arithmetic on the same random numbers with fewer launches.
"""

import copy
import functools
import logging
import textwrap
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from dp import distributed
from dp.policy import DiffusionPolicy
from dp.types import Batch, Denoiser

log = logging.getLogger(__name__)

Inputs = Any
"""Output of a loader: a tensor, or a nested dict of tensors, always of the same shapes."""

EAGERS_RANDOM_NUMBERS: dict[str, Any] = {"fallback_random": True, "reorder_for_peak_memory": False}
"""Options of TorchInductor: it draws with eager's operations, and in eager's order."""

WARM_UP = 3
"""Calls that run eagerly before a graph is captured, so that everything created on first use exists."""


def training_step(engine: Literal["auto", "eager", "compile", "graph"], step: "EagerStep") -> "FallingBack":
    """`step` on `engine`, or, if that fails at its start, on the next simpler one, with a warning.

    auto: graph on CUDA, eager elsewhere.
    """
    compiled_step = functools.cache(lambda: compiled(step))
    apart = functools.partial(distributed.apart, model=step.policy)
    choices: dict[str, Callable[[], Step]] = {
        "graph": lambda: apart(GraphStep(compiled_step())),
        "graph without a compiler": lambda: apart(GraphStep(step)),
        "compile": lambda: apart(compiled_step()),
        "eager": lambda: apart(step),
    }
    names = list(choices)
    first = names.index(choose(engine, step.policy.device))
    engine_step = FallingBack({name: choices[name] for name in names[first:]}, apart(step))
    if not engine_step.warm:
        log.info(
            "compiling the training step, which takes minutes the first time (workspace.engine=eager starts at once)"
        )
    return engine_step


def choose(engine: str, device: torch.device) -> str:
    """The engine that `engine` means on `device`. Raises ValueError if it is unknown or cannot run there."""
    if engine not in ("auto", "eager", "compile", "graph"):
        raise ValueError(f"workspace.engine={engine}, expected auto, eager, compile or graph")
    if engine == "graph" and device.type != "cuda":
        raise ValueError(
            f"workspace.engine=graph needs a CUDA device, but this run is on {device.type}: use workspace.engine=auto"
        )
    if engine == "auto":
        return "graph" if device.type == "cuda" else "eager"
    return engine


Shapes = tuple[tuple[torch.Size, torch.dtype], ...]
"""Shape and dtype of each input. Inputs with equal ones, and equally many rows, share a graph."""

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
        compress: the type in which gradients travel between processes; None: their own.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        optimizer: torch.optim.Optimizer,
        load: Callable[[Inputs], Batch],
        max_grad_norm: float,
        bf16: bool,
        compress: Literal["bf16"] | None = None,
    ) -> None:
        self.policy, self.optimizer, self.load = policy, optimizer, load
        self.max_grad_norm, self.bf16, self.compress = max_grad_norm, bf16, compress
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
        mean_losses = distributed.average(self.policy.parameters(), torch.stack(losses), self.compress)
        distributed.average_statistics(self.policy)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        self.optimizer.step()
        return torch.stack([mean_losses.sum(), grad_norm])


def compiled(step: EagerStep) -> EagerStep:
    """`step` with its loss compiled by TorchInductor, drawing eager's random numbers. Raises if it does not compile
    whole.

    Code that earlier runs of this process compiled is forgotten. It would count towards the number of compilations
    after which torch silently stops compiling a function, and make shapes that differ between the runs symbolic.
    """
    torch.compiler.reset()
    faster = copy.copy(step)
    loss = torch.compile(step.loss, fullgraph=True, dynamic=False, options=EAGERS_RANDOM_NUMBERS)
    faster.loss = cast(Callable[[Batch], Tensor], loss)
    return faster


class GraphStep:
    """All of `step` in one CUDA graph, from the gather to the optimizer: a single launch.

    The first steps run as written and warm up the rest, so no step is made twice. The learning rate
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
    """The first of `choices` that works. An engine that fails in its first calls, on any rank, is dropped by all.

    `eager` then makes the step, with the random numbers that it would have drawn. Its own errors are no engine's fault
    and are raised once. One warning names all that failed, when the engine that took over has proved itself.
    """

    def __init__(self, choices: dict[str, Callable[[], Step]], eager: Step) -> None:
        self._choices, self._eager = choices, eager
        self._reasons: dict[str, str] = {}
        self._begin(next(iter(choices)))

    def _begin(self, name: str) -> None:
        self.name, self._calls = name, 0
        self._step = self._choices.pop(name)()

    @property
    def warm(self) -> bool:
        """Whether everything that happens once (compilation, capture) has happened."""
        return self._calls > WARM_UP or not self._choices

    def __call__(self, inputs: list[Inputs]) -> Float[Tensor, "2"]:
        if self.warm:
            return self._step(inputs)
        before, reason = _random_state(), None
        try:
            result = self._step(inputs)
        except Exception as error:
            reason = _reason(error)
        if reason is not None:
            _set_random_state(before)
            result = self._eager(inputs)
        reasons = distributed.same([there for there in distributed.gather(reason) if there is not None])
        if reasons:
            self._reasons[self.name] = reasons[0]
            self._begin(next(iter(self._choices)))
        else:
            self._calls += 1
        self._say_what_failed()
        return result

    def _say_what_failed(self) -> None:
        if self.warm and self._reasons:
            first, reasons = next(iter(self._reasons)), "; ".join(dict.fromkeys(self._reasons.values()))
            warnings.warn(f"workspace.engine={first} failed, continuing with {self.name}: {reasons}", stacklevel=3)


class GraphDenoiser:
    """A denoiser as CUDA graphs: one launch for each evaluation, whatever a scheduler does between two of them.

    The smallest graph that holds a batch serves it. A rollout therefore captures one, and its rounding does not depend
    on how many episodes are left. A single row has a graph of its own, because a robot waits for it. It runs as written
    if gradients are recorded or, with a warning, if the capture fails. The weights may change in place.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        self._denoiser, self._stream = denoiser, torch.cuda.Stream(device)
        self._graphs: dict[Shapes, dict[int, tuple[Graph, Tensor, list[Tensor]]]] = {}
        self._capturable = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._denoiser, name)  # an objective may ask the denoiser for more than its output

    def __call__(
        self, x: Float[Tensor, "B H Da"], t: Shaped[Tensor, "B n"], cond: Float[Tensor, "B To Do"]
    ) -> Float[Tensor, "B H Da"]:
        if not self._capturable or torch.is_grad_enabled():
            return self._denoiser(x, t, cond)
        inputs, n = (x, t, cond), len(x)
        graphs = self._graphs.setdefault(tuple((part.shape[1:], part.dtype) for part in inputs), {})
        # The smallest captured size that holds the batch, or a new one.
        size = min((size for size in graphs if size >= n > 1), default=n)
        if size not in graphs:
            try:
                graphs[size] = self._capture([part.clone() for part in inputs])
            except Exception as error:
                self._capturable, reason = False, _reason(error)
        if not self._capturable:
            result = self._denoiser(x, t, cond)  # raises what is the denoiser's own fault
            warnings.warn(f"denoising runs without CUDA graphs: {reason}", stacklevel=2)
            return result
        # Rows beyond n keep old inputs, and nobody reads their results.
        graph, static_result, static_inputs = graphs[size]
        for static, given in zip(static_inputs, inputs, strict=True):
            static[:n].copy_(given)
        graph.replay()
        return static_result[:n].clone()

    def _capture(self, inputs: list[Tensor]) -> tuple[Graph, Tensor, list[Tensor]]:
        on_stream(self._stream, lambda: self._denoiser(*inputs))
        return *capture(self._stream, lambda: self._denoiser(*inputs)), inputs


def speed_up_sampling(engine: str, policy: DiffusionPolicy) -> None:
    """Lets `policy` denoise with CUDA graphs if `engine` means them. Its weights may change in place."""
    if choose(engine, policy.device) == "graph":
        policy.fast_denoiser = GraphDenoiser(policy.denoiser, policy.device)


def on_stream(stream: torch.cuda.Stream, work: Callable[[], Tensor]) -> Tensor:
    """Runs `work` on a side stream, in order with the work before and after it, as the warm-up of graphs requires."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        result = work()
    torch.cuda.current_stream().wait_stream(stream)
    return result


def capture(stream: torch.cuda.Stream, work: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
    """The graph of `work`, and the tensor in which each replay leaves its result. Runs nothing.

    Other threads may use CUDA meanwhile: DataLoader's pins memory. A capture that fails leaves the default generator as
    it was. torch before 2.15 would leave it unusable.
    """
    graph = torch.cuda.CUDAGraph()
    if distributed.whole_batch is not None and torch.__version__ < "2.15":  # later ones find it by themselves
        graph.register_generator_state(distributed.whole_batch)
    generator = torch.cuda.default_generators[stream.device.index]
    before = generator.clone_state()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = work()
    except BaseException:
        generator.graphsafe_set_state(before)
        raise
    return graph, result


def _reason(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}".splitlines()[0], 200)


def _random_state() -> tuple[Tensor, Tensor | None]:
    """The state of torch's default generators: the CPU's, and the current GPU's."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


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

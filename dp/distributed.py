"""One training in several processes, as torchrun, srun or submitit starts them, over `torch.distributed`.

Every process ("rank") holds the whole policy and takes its share of each global batch. All draw the random numbers of
the whole batch from generators in the same state, and each keeps those of its own rows. So a run does not depend on the
number of processes but for the rounding of sums, a checkpoint needs one generator's state, and no two rows share noise.
Dropout alone draws from a generator of each rank's own (`apart`).
In a single process, everything here does nothing.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor, nn

T = TypeVar("T")
U = TypeVar("U")

PATIENCE = timedelta(seconds=90)
"""Longest wait for the other ranks in a step of training. wandb may hold rank 0 up for 60 s."""

LONG_PATIENCE = timedelta(hours=1)
"""Longest wait where one rank may work alone: reading data, compiling, rollouts of long episodes, saving."""

LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    "srun": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    "submitit without SLURM": (
        "SUBMITIT_LOCAL_GLOBALID",
        "SUBMITIT_LOCAL_NTASKS",
        "SUBMITIT_LOCAL_LOCALID",
        "SUBMITIT_LOCAL_NTASKS",
    ),
}
"""Launcher -> the variables with a process's number, the number of processes, and both of this machine alone."""


def _launched() -> tuple[int, int, int, int]:
    """(rank, world, local rank, local world) as a launcher says; one process without one."""
    several = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "MASTER_ADDR" in os.environ and "RANK" not in os.environ
    if several and (missing := [name for name in LAUNCHERS["srun"] if name not in os.environ]):
        raise ValueError(f"srun has set no {', '.join(missing)}: give it --ntasks-per-node")
    for launcher, names in LAUNCHERS.items():
        wanted = (*names, "MASTER_ADDR") if launcher == "srun" else names  # srun alone also starts single processes
        if all(name in os.environ for name in wanted):
            rank, world, local, n_local = (int(os.environ[name]) for name in names)
            return rank, world, local, n_local
    return 0, 1, 0, 1


RANK, WORLD, LOCAL_RANK, LOCAL_WORLD = _launched()

_prompt: Any = None
"""The group whose collectives wait for PATIENCE only."""

_steps: Any = None
"""The group of gradients: first the default one, which is patient, because ranks compile at different speeds."""

whole_batch: torch.Generator | None = None
"""Where `draw` takes its numbers while torch's default generator is the rank's own (`apart`)."""


class Alone(OSError):
    """The other ranks have ended, or do not answer."""


def writes() -> bool:
    """Whether this process writes the run directory, logs, and prints: rank 0."""
    return RANK == 0


def join(device: torch.device) -> None:
    """Meets the other ranks. Gradients travel by NCCL between GPUs, and by gloo between CPUs."""
    if WORLD == 1:
        return
    os.environ |= {"RANK": str(RANK), "WORLD_SIZE": str(WORLD)}
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", str(29500 + int(os.environ.get("SUBMITIT_LOCAL_JOB_ID", "0")) % 3000))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=LONG_PATIENCE)
    globals()["_prompt"] = dist.new_group(timeout=PATIENCE)


def hurry() -> None:
    """From now on a step waits for the other ranks for PATIENCE only."""
    globals()["_steps"] = _prompt


def leave() -> None:
    """Parts from the other ranks, when all have come here."""
    if dist.is_initialized():
        meet()
        dist.destroy_process_group()


def meet() -> None:
    """Waits until all ranks have come here."""
    same(None)
    gather(None)


@contextmanager
def _together() -> Iterator[None]:
    """Turns errors of torch.distributed into `Alone`."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise Alone(
            f"rank {RANK} has lost the others: one of them has ended, and says why, or does not answer ({reason:.160})"
        ) from error


def own_rows(n: int) -> slice:
    """The rows of a global batch of `n` that are this rank's. Raises ValueError if the ranks cannot share it evenly."""
    if n % WORLD:
        raise ValueError(f"a batch of {n} cannot be shared evenly by {WORLD} processes: expected a multiple of {WORLD}")
    return slice(RANK * n // WORLD, (RANK + 1) * n // WORLD)


def draw(
    sample: Callable[..., Tensor],
    shape: Sequence[int],
    axis: int = 0,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Shaped[Tensor, "..."]:
    """This rank's rows of the random numbers of a global batch, where `axis` counts the rows.

    sample: a function of torch that draws a tensor of a given shape, such as `torch.randn`. shape: of the own rows.
    """
    whole = (*shape[:axis], shape[axis] * WORLD, *shape[axis + 1 :])
    drawn = sample(whole, generator=whole_batch if generator is None else generator, device=device)
    return drawn if WORLD == 1 else drawn.chunk(WORLD, axis)[RANK]


def apart(work: Callable[[T], U], model: nn.Module) -> Callable[[T], U]:
    """`work`, during which the default generator that the dropout of `model` draws from differs between ranks.

    `draw` still draws the shared numbers, and afterwards everything draws on from their end. The ranks' own numbers
    follow from the shared state, so a checkpoint needs no other. A single process, or a model without dropout, needs
    nothing of this.
    """
    if WORLD == 1 or not any(
        isinstance(module, nn.modules.dropout._DropoutNd) and module.p for module in model.modules()
    ):
        return work
    device = next(model.parameters()).device
    default = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
    shared = torch.Generator(device)

    def work_apart(inputs: T) -> U:
        shared.set_state(default.get_state())
        default.manual_seed(zlib.crc32(shared.get_state().numpy().tobytes(), RANK))
        globals()["whole_batch"] = shared
        try:
            return work(inputs)
        finally:
            globals()["whole_batch"] = None
            default.set_state(shared.get_state())

    return work_apart


def average(
    parameters: Iterable[nn.Parameter], losses: Float[Tensor, " n"], compress: Literal["bf16"] | None = None
) -> Float[Tensor, " n"]:
    """Replaces the gradients of `parameters` by their means over all ranks, and returns the mean of `losses`.

    One flat sum, which a CUDA graph of the step can capture. compress: the type that gradients travel in.
    """
    if WORLD == 1:
        return losses
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    means = mean(flat.bfloat16() if compress == "bf16" else flat)
    for gradient, part in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
    return mean(losses)


def average_statistics(model: nn.Module) -> None:
    """Replaces the running statistics of batch norms by their means over all ranks."""
    if WORLD == 1:
        return
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for buffer in (buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point()):
        buffer.copy_(mean(buffer))


def mean(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """The mean over all ranks."""
    if WORLD == 1:
        return values
    total = values.clone()
    with _together():
        dist.all_reduce(total, group=_steps)
    return total / WORLD


def same(value: T) -> T:
    """`value` of rank 0, on every rank."""
    if WORLD == 1:
        return value
    box = [value]
    with _together():
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order, on rank 0; the own one alone elsewhere."""
    if WORLD == 1:
        return [value]
    values: list[Any] | None = [None] * WORLD if RANK == 0 else None
    with _together():
        dist.gather_object(value, values)
    return values if values is not None else [value]


def share(items: Sequence[T]) -> list[T]:
    """This rank's part of `items`: every WORLD-th one."""
    return list(items[RANK::WORLD])


@contextmanager
def writer_first() -> Iterator[None]:
    """Rank 0 passes the body alone, for example to fill a cache; the others follow."""
    if RANK:
        same(None)
    yield
    if RANK == 0:
        same(None)


class Agreement:
    """Lets all ranks learn, at the same step, that one of them wants something, for example to stop.

    Each call tells the others of this step and answers for the step before, so that nobody waits for a slow network,
    and the host does not wait for a GPU.
    """

    def __init__(self) -> None:
        self._work: Any = None
        self._wanted = torch.zeros(1)

    def __call__(self, wanted: bool) -> bool:
        """Whether any rank `wanted` it at the last call. In a single process: `wanted`.

        Raises Alone if a rank does not answer within PATIENCE.
        """
        if WORLD == 1:
            return wanted
        with _together():
            answer = self._answer()
            self._wanted = torch.tensor([float(wanted)])
            self._work = dist.all_reduce(self._wanted, dist.ReduceOp.MAX, _prompt, async_op=True)
        return answer

    def _answer(self) -> bool:
        if self._work is None:
            return False
        self._work.wait()
        return bool(self._wanted)

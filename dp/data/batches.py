"""Batches in an order that is a pure function of (seed, position), on which exact resumption rests."""

import mmap
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from functools import lru_cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dp.data.windows import WindowDataset, prepare
from dp.distributed import own_rows
from dp.processes import shorten_socket_paths
from dp.types import Batch

WORKER_TIMEOUT_S = 300
"""Longest wait, in seconds, for a batch of the DataLoader's workers. Without shared memory they wait for ever."""


class BatchOrder(Sampler):
    """Window indices of batch `start`, `start + 1`, ... without end: this process's rows of them.

    Window p of the run is entry p mod n of the permutation of epoch p div n, which is drawn from (seed, epoch). A batch
    may span two epochs, so every window is seen once per epoch whatever the batch size.
    """

    def __init__(self, n: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.n, self.batch_size, self.seed, self.start = n, batch_size, seed, start
        self._rows = own_rows(batch_size)
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def _draw_permutation(self, epoch: int) -> Int[Tensor, " n"]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.n, generator=generator)

    def batch(self, number: int) -> Int[Tensor, " B"]:
        position = torch.arange(number * self.batch_size, (number + 1) * self.batch_size)
        epochs, entries = position // self.n, position % self.n
        return torch.cat([self._permutation(int(e))[entries[epochs == e]] for e in epochs.unique()])

    def __iter__(self) -> Iterator[Int[Tensor, " B"]]:
        number = self.start
        while True:
            yield self.batch(number)[self._rows]
            number += 1


class Loader(Protocol):
    """Yields what identifies the batches, in their order, and turns it into batches on the device that trains.

    A context manager, in which it is iterated: leaving it ends what iterating began.
    """

    def __enter__(self) -> "Loader": ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None: ...

    def __iter__(self) -> Iterator[Any]: ...

    def load(self, inputs: Any) -> Batch: ...


class ResidentLoader:
    """The whole data set lies on `device`: it yields window indices, and gathers there. No workers, no copies."""

    def __init__(self, dataset: WindowDataset, order: BatchOrder, device: torch.device) -> None:
        self.dataset, self.order, self.device = dataset.to(device), order, device

    def __iter__(self) -> Iterator[Int[Tensor, " B"]]:
        return iter(self.order)

    def load(self, inputs: Int[Tensor, " B"]) -> Batch:
        return prepare(self.dataset.gather(inputs.to(self.device, non_blocking=True)))

    def __enter__(self) -> "ResidentLoader":
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: there are no workers."""


class StreamedLoader:
    """The same batches through torch's DataLoader, for data that does not fit on the device: it yields them raw.

    Raises ValueError if /dev/shm has no room for the batches of its workers, which would wait for ever. Leaving
    its context raises ChildProcessError if it was left because a worker died or delivered nothing for
    `WORKER_TIMEOUT_S`.
    """

    def __init__(self, dataset: WindowDataset, order: BatchOrder, device: torch.device, n_workers: int) -> None:
        self.device = device
        if n_workers > 0:
            shorten_socket_paths()  # batches travel through sockets
            check_shared_memory(_nbytes(dataset.gather(order.batch(order.start))) * n_workers * (1 + PREFETCHED))
        self.loader = DataLoader(
            _Gather(dataset),
            sampler=order,
            batch_size=None,
            num_workers=n_workers,
            prefetch_factor=PREFETCHED if n_workers > 0 else None,
            timeout=WORKER_TIMEOUT_S if n_workers > 0 else 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # it seeds the workers: not from the generator that training draws from
            worker_init_fn=_leave_signals_to_the_parent,
        )
        self._workers: set[BaseProcess] = set()
        self._sigchld = signal.getsignal(signal.SIGCHLD)

    def __iter__(self) -> Iterator[Batch]:
        before = set(multiprocessing.active_children())
        batches = iter(self.loader)
        self._workers = set(multiprocessing.active_children()) - before
        return batches

    def load(self, inputs: Batch) -> Batch:
        return prepare(inputs, self.device)

    def __enter__(self) -> "StreamedLoader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Ends the workers, even those that wait for a killed one."""
        if self._workers:
            signal.signal(signal.SIGCHLD, self._sigchld or signal.SIG_DFL)  # torch's would raise at their end
        for worker in self._workers:
            worker.kill()
            worker.join()
        if error is not None and lost_worker(error):
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ChildProcessError(
                f"a worker of the DataLoader died, perhaps out of memory or of /dev/shm ({reason:.200}). What was "
                "saved before is intact. Without workers: workspace.n_loader_workers=0"
            ) from error


PREFETCHED = 2
"""Batches that each worker of a DataLoader prepares ahead (torch's default)."""

SHARED_MEMORY = Path("/dev/shm")


def check_shared_memory(needed: int, place: Path = SHARED_MEMORY) -> None:
    """Raises ValueError if `place`, through which workers hand over batches, has fewer than `needed` bytes free."""
    free = shutil.disk_usage(place).free if place.is_dir() else needed
    if free < needed:
        raise ValueError(
            f"workspace.loader=dataloader: its workers need {needed / 1e6:.0f} MB of shared memory, but {place} has "
            f"{free / 1e6:.1f} MB free. Set workspace.n_loader_workers=0, or provide more (docker run --shm-size=1g)"
        )


def lost_worker(error: BaseException) -> bool:
    """Whether `error` comes from a worker of a DataLoader that was killed or hangs: by torch's own check, which may
    raise anywhere, or because its connection has no other end."""
    if isinstance(error, (ConnectionError, EOFError)):
        return True
    text = str(error)
    return (
        isinstance(error, RuntimeError)
        and text.startswith(("DataLoader worker", "DataLoader timed"))
        and "Caught" not in text
    )


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignores signals, which reach the whole process group: the parent decides, and still needs its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _nbytes(batch: Any) -> int:
    """Bytes of shared memory, which is handed out in pages."""
    if isinstance(batch, Tensor):
        return -(-batch.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    return sum(map(_nbytes, batch.values()))


class _Gather(Dataset):
    """Lets the sampler's index tensors through to `WindowDataset.gather`: one gather per batch instead of one per
    window."""

    def __init__(self, dataset: WindowDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Int[Tensor, " B"]) -> Batch:
        return self.dataset.gather(index)


def fits(dataset: WindowDataset, device: torch.device) -> bool:
    """Whether the data set may lie on `device` whole: always on a CPU (it is there), in half of what a GPU has free."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.nbytes < free / 2

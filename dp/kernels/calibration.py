"""Timings, in a fraction of a second, that tell which precision and number of threads suit this processor."""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

AVAILABLE = torch.get_num_threads()
"""Number of threads that torch uses by default: the cores, or OMP_NUM_THREADS."""

WORTHWHILE = 1.2
"""bfloat16 must multiply faster than float32 by this factor: casting weights and activations costs something, too."""


def bf16_pays(device: torch.device) -> bool:
    """Returns whether matrix products are faster in bfloat16 than in float32.

    It is on GPUs since Ampere and on CPUs that have instructions for it. Others emulate it, a CPU up to a hundred times
    slower. Apple's GPUs are not timed and keep float32.
    """
    if device.type != "cpu":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    x = torch.rand(192, 192)
    half = x.bfloat16()
    fp32_s, bf16_s = _medians([_with_threads(1, lambda: x @ x), _with_threads(1, lambda: half @ half)])
    return fp32_s > WORTHWHILE * bf16_s


def fastest_num_threads(most: int) -> tuple[int, dict[int, float]]:
    """The faster of 1 and `most` threads on work like a small network's, and the seconds that each took.

    Threads wait for each other at the end of every operation. If another process keeps a core busy,
    this can cost many times what the threads bring.
    """
    x, weight = torch.rand(2048, 192), torch.rand(192, 192) / 192

    def layers() -> None:
        y = x
        for _ in range(4):
            y = F.mish(y @ weight)

    choices = sorted({1, most})
    seconds = dict(zip(choices, _medians([_with_threads(n, layers) for n in choices], rounds=3), strict=True))
    return min(choices, key=lambda n: seconds[n]), seconds


def _with_threads(n: int, work: Callable[[], object]) -> Callable[[], float]:
    """Seconds that `work` takes on `n` threads."""

    def timed() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        torch.set_num_threads(before)
        return seconds

    return timed


def _medians(timed: list[Callable[[], float]], rounds: int = 5) -> list[float]:
    """Returns the median time of each function, called in turns after one call to warm up."""
    times = [[work() for work in timed] for _ in range(1 + rounds)]
    return [statistics.median(taken) for taken in zip(*times[1:], strict=True)]

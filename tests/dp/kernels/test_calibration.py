"""Timings choose what is faster here, now, and leave torch as it was."""

import time

import pytest
import torch

from dp.kernels import calibration


def test_medians_are_of_each_in_turns_and_ignore_the_first_call() -> None:
    calls = iter([9.0, 9.0, 1.0, 4.0, 3.0, 5.0, 2.0, 6.0])
    assert calibration._medians([lambda: next(calls), lambda: next(calls)], rounds=3) == [2.0, 5.0]


@pytest.mark.parametrize("native", [True, False])
def test_bf16_pays_on_gpus_that_do_not_emulate_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards before Ampere do, and torch counts them unless it is told not to."""
    supported = lambda including_emulation=True: including_emulation or native  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert calibration.bf16_pays(torch.device("cuda")) == native
    assert not calibration.bf16_pays(torch.device("mps"))


def test_bf16_pays_on_cpus_as_measured() -> None:
    x = torch.rand(512, 512)
    seconds = []
    for operand in (x, x.bfloat16()):
        operand @ operand
        start = time.perf_counter()
        operand @ operand
        seconds.append(time.perf_counter() - start)
    if max(seconds) > 3 * min(seconds):  # where it is far from close, the quick measurement agrees with this one
        assert calibration.bf16_pays(torch.device("cpu")) == (seconds[1] < seconds[0])


def test_threads_are_chosen_among_one_and_all_and_nothing_is_left_changed() -> None:
    before = torch.get_num_threads()
    n, seconds = calibration.fastest_num_threads(3)
    assert sorted(seconds) == [1, 3]
    assert seconds[n] == min(seconds.values())
    assert torch.get_num_threads() == before
    assert calibration.fastest_num_threads(1)[0] == 1

"""A GPU that cannot be used is named with its reason, before anything begins."""

import re
from collections.abc import Callable

import pytest
import torch

from dp import devices
from dp.devices import Machine, choose_device, runs_on

H100, V100 = ("NVIDIA H100", (9, 0)), ("Tesla V100", (7, 0))
KERNELS = ("sm_75", "sm_80", "sm_86", "sm_90")


@pytest.mark.parametrize(
    ("machine", "index", "told"),
    [
        (Machine("13.2", "535.104.05", (), (), None), 0, "driver is 535.104.05, .*CUDA 13.2.* needs 580 .*pip install"),
        (Machine("13.2", "580.65", (), (), None), 0, "although the NVIDIA driver 580.65 is loaded: .*nvidia-smi"),
        (Machine(None, "580.65", (), (), None), 0, "this torch is built for CPUs.*pip install"),
        (Machine("13.2", None, (), (), None), 0, "no NVIDIA driver is loaded"),
        (Machine("13.2", "580.65", (), (), ""), 0, "CUDA_VISIBLE_DEVICES=''"),
        (Machine("13.2", "580.65", (H100, H100), KERNELS, "0,1"), 2, "2 CUDA.*cuda:1. CUDA_VISIBLE_DEVICES.* is 0,1"),
        (Machine("13.2", "580.65", (H100, V100), KERNELS, None), 1, "V100 .sm_70. is too old.*sm_75.*pip install"),
    ],
)
def test_the_reason_and_the_remedy_are_one_line(machine: Machine, index: int, told: str) -> None:
    fault = machine.fault(index)
    assert fault is not None
    assert re.search(told, fault)
    assert "\n" not in fault


def test_a_gpu_that_works_has_no_fault() -> None:
    machine = Machine("13.2", "580.65", (H100, V100), KERNELS, None)
    assert machine.fault() is None


def test_kernels_run_on_later_cards_of_their_generation_and_code_on_all_later_ones() -> None:
    assert runs_on((8, 9), KERNELS)  # RTX 40xx, with kernels for 8.6
    assert not runs_on((12, 0), KERNELS)
    assert runs_on((12, 0), (*KERNELS, "compute_90"))
    assert not runs_on((7, 0), (*KERNELS, "compute_90"))
    assert runs_on((9, 0), ("sm_90a",))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    return lambda machine: monkeypatch.setattr(devices, "this_machine", lambda: machine)


def test_a_gpu_is_chosen_by_number(on: Callable) -> None:
    on(Machine("13.2", "580.65", (H100, H100), KERNELS, None))
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(ValueError, match=r"device=cuda:2, but torch finds 2 CUDA.*CUDA_VISIBLE_DEVICES"):
        choose_device("cuda:2")


def test_auto_says_why_it_passes_over_a_gpu(on: Callable, caplog: pytest.LogCaptureFixture) -> None:
    on(Machine("13.2", "535.104.05", (), (), None))
    assert choose_device("auto") == torch.device("cpu")
    assert "device=auto chose the CPU: torch finds no CUDA device here: the NVIDIA driver is 535" in caplog.text
    caplog.clear()
    on(Machine("13.2", None, (), (), None))
    choose_device("auto")
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cpu:1", "mps:0", "0"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device={name}, expected auto, cpu or cuda .cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("available", [True, False])
def test_mps_is_taken_where_it_is(available: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available)
    if available:
        assert choose_device("mps") == torch.device("mps")
    else:
        with pytest.raises(ValueError, match="device=mps, but torch finds no Apple GPU"):
            choose_device("mps")

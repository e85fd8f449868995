"""What `run.py` sets before anything is imported."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from workspaces import startup

REPOSITORY = Path(__file__).parents[2]
PAGE_FAULTS_OF_TEN_TENSORS = """
{tuned}
import resource, torch
def make():
    torch.empty(2**24).fill_(1)  # 64 MiB
for _ in range(10):
    make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    make()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

GARBAGE_OF_A_JOB = """
import gc, weakref
from workspaces import startup
startup.import_parts()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
class Job: pass
job = Job()
job.itself, left = job, weakref.ref(job)
del job
startup.import_parts()
gc.collect()
print(left() is None)
"""

TUNED = "from workspaces import startup; startup.tune()"
IMPORTED = "import sys, run; print(sorted({'torch', 'hydra', 'numpy', 'dp'} & sys.modules.keys()))"


def output(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    variables = {name: value for name, value in os.environ.items() if name not in startup.LAUNCH} | environment
    return subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, text=True, check=True).stdout


def page_faults(tuned: str = "", **environment: str) -> int:
    return int(output(PAGE_FAULTS_OF_TEN_TENSORS.format(tuned=tuned), **environment))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back so eagerly")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    assert page_faults(TUNED) < 1000
    assert page_faults(**startup.LAUNCH) < 1000  # as benchmarks launch what they time
    assert page_faults() > 10_000


def test_threads_wait_asleep_unless_the_user_says_otherwise() -> None:
    shown = f"{TUNED}; import os; print(os.environ['GOMP_SPINCOUNT'])"
    assert output(shown) == "1000\n"
    assert output(shown, GOMP_SPINCOUNT="5") == "5\n"


def test_what_is_imported_is_frozen_and_what_a_job_leaves_is_not() -> None:
    """Jobs of a sweep may share a process."""
    assert output(GARBAGE_OF_A_JOB).endswith("True\n")


def test_threads_take_short_turns_for_a_while() -> None:
    before = sys.getswitchinterval()
    with startup.short_turns():
        assert sys.getswitchinterval() == pytest.approx(1e-4)
    assert sys.getswitchinterval() == before


def test_importing_run_imports_nothing_else() -> None:
    """Every worker that steps environments does so."""
    assert output(IMPORTED) == "[]\n"


def test_options_may_follow_overrides():
    typed = ["run.py", "seed=0", "~encoder", "-m", "horizon=8,10", "--config-name", "config"]
    startup.greet(typed)
    assert typed == ["run.py", "-m", "--config-name", "config", "seed=0", "~encoder", "horizon=8,10"]

"""What `run.py` does before anything is imported."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGE_FAULTS_OF_TEN_TENSORS = """
import resource, torch, run
{keep}
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
import gc, weakref, run
run.import_once()
assert gc.isenabled() and gc.get_freeze_count() > 100_000
class Job: pass
job = Job()
job.itself, left = job, weakref.ref(job)
del job
run.import_once()
gc.collect()
print(left() is None)
"""


def page_faults(keep: str) -> int:
    command = [sys.executable, "-c", PAGE_FAULTS_OF_TEN_TENSORS.format(keep=keep)]
    return int(subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back so eagerly")
def test_freed_memory_is_kept_for_the_next_tensor() -> None:
    assert page_faults(keep="run.keep_freed_memory()") < 1000
    assert page_faults(keep="pass") > 10_000


def test_what_is_imported_is_frozen_and_what_a_job_leaves_is_not() -> None:
    """Jobs of a sweep may share a process."""
    command = [sys.executable, "-c", GARBAGE_OF_A_JOB]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.endswith("True\n")

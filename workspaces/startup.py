"""Process tuning by `run.py` before and during its start. Imports only the standard library."""

import atexit
import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h

ENVIRONMENT = {
    "GOMP_SPINCOUNT": "1000",  # threads wait asleep: spinning ones starve those they wait for
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
    "WANDB_ERROR_REPORTING": "false",  # wandb's reports about itself hold the end of a run up for a minute when offline
}
"""Variables that libraries read when they are imported. Values set by the user stay."""

LAUNCH = ENVIRONMENT | {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**63)}
"""The environment in which a process starts as `tune` makes it, for programs that do not start with `run.py`."""

SWITCH_INTERVAL_S = 1e-4


SHOWS = ("-h", "--help", "--hydra-help", "--version", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion")
"""Options that only print something."""


def greet(arguments: list[str]) -> None:
    """Says that the program has started, because its imports take seconds. Without arguments it shows the help.

    Puts overrides behind the options, because argparse reads no override after `seed=0 -m`. Exits if the working
    directory is gone, which every library would report in its own way.
    """
    if len(arguments) == 1:
        arguments.append("--help")
    arguments[1:] = sorted(arguments[1:], key=_is_override)
    try:
        os.getcwd()
    except FileNotFoundError:
        sys.exit("error: the working directory has been deleted: cd to another one")
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts
    if first and not any(argument.split("=")[0] in SHOWS for argument in arguments):
        sys.stderr.write("starting, which takes some seconds\n")
        sys.stderr.flush()


def _is_override(typed: str) -> bool:
    return typed.startswith("~") or ("=" in typed and not typed.startswith("-"))


def close_stdout() -> None:
    """Discards output that is left for a pipe that nobody reads, without an error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tune() -> None:
    """Tunes this process for its whole life: the allocator, and how threads wait. To call before torch is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Lets new tensors reuse freed memory. glibc would return it to the system, and pay for each new page."""
    with contextlib.suppress(AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def import_parts() -> None:
    """Imports the libraries of a job with the garbage collector off, which would take a seventh of the time for
    nothing.

    Imported modules stay, so the collector never looks at them again. It is on afterwards, and stays on for later jobs
    of this process, to collect what earlier ones left.
    """
    if "workspaces.build" in sys.modules:
        return
    gc.disable()
    try:
        import workspaces.build  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # some extensions complain about what is left at the end


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """Switches threads every 0.1 ms instead of 5 ms, so that an import in one thread does not stall the main thread."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)

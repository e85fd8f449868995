"""The one entry: `python run.py +experiment=pusht_image`. `python run.py --help` lists the rest."""

import atexit
import contextlib
import ctypes
import gc
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> None:
    """New tensors lie where freed ones lay. Else glibc gives those back to the system, and every new page costs."""
    with contextlib.suppress(AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def import_once() -> None:
    """Imports what a job needs without looking for garbage: a seventh of the time would go into that, for nothing.

    What is imported stays, and is never looked through again. Not so at a process's second job: what the first one left
    must be found.
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


if __name__ == "__main__":  # env workers import this file: they must not pay for what follows
    keep_freed_memory()
    sys.setswitchinterval(1e-4)  # while one thread imports, the others wait a fiftieth of the time for their turn
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads wait asleep: spinning ones starve those they wait for
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    import hydra
    from omegaconf import DictConfig

    from workspaces.errors import exit_with_message, full_tracebacks

    @hydra.main(version_base="1.3", config_path="configs", config_name="config")
    def main(config: DictConfig) -> float | None:
        import_once()
        from workspaces import build, sweep

        try:
            with build.workspace(config) as workspace:
                return workspace.run()
        except Exception as error:  # here, because Hydra would print every override before it lets an error through
            code = exit_with_message(error)
            sweep.leave_job(error) if build.in_sweep() else sys.exit(code)

    full_tracebacks()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped at once: what was saved before is intact")
    except Exception as error:  # in what was typed
        sys.exit(exit_with_message(error))

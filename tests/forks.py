"""Runs `run.py` again and again in forks of one process, which has imported everything, and kills some of them.

A fork starts in a tenth of a second where a new process imports for five. Reads a JSON object per line: `arguments` of
the command line, `cwd`, `env`, `timeout`, files for `stdout` and `stderr`, and when it is killed, if ever: `after_s` or
`at_call`. Answers with one: `returncode`, `seconds`, and if a killing was asked for, `calls` and `where` it died.
"""

import atexit
import importlib
import json
import os
import random
import runpy
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

RUN = Path(__file__).parents[1] / "run.py"
WRITING = [
    *(str(RUN.parent / "workspaces" / name) for name in (
        "assessment.py", "base.py", "checkpoint.py", "logger.py", "record.py", "rollouts.py", "train.py",
        "train_state.py", "training_log.py", "video.py",
    )),
    str(RUN.parent / "dp/files.py"),
]  # fmt: skip
"""Files whose calls are counted: all that a training writes is written from there."""

IMPORTED = (
    "workspaces.train", "workspaces.sweep", "dp.tasks.pusht.env", "dp.tasks.pusht.task",
    "dp.tasks.pusht.demonstrations", "dp.encoders.state", "dp.denoisers.unet1d", "dp.objectives.diffusion",
    "scipy.stats", "av",
)  # fmt: skip
"""What a training imports later: eight hundred modules, seconds of every life."""

POLL_S = 0.002


def main() -> None:
    sys.path.insert(0, str(RUN.parent))
    from workspaces import startup

    startup.tune()
    import hydra  # noqa: F401

    startup.import_parts()
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_run(json.loads(line))) + "\n")
        sys.stdout.flush()


def _run(order: dict[str, Any]) -> dict[str, Any]:
    told, telling = os.pipe()
    begin = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        _live(order, telling)
    os.close(telling)
    code = _end(pid, begin, order)
    seconds = time.perf_counter() - begin
    if not order["counts"]:  # processes that outlive it may still hold the pipe
        os.close(told)
        return {"returncode": code, "seconds": seconds}
    with os.fdopen(told) as pipe:
        last = pipe.read().splitlines()
    calls, _, where = (last[-1] if last else "0 some time").partition(" ")
    return {"returncode": code, "seconds": seconds, "calls": int(calls), "where": where}


def _end(pid: int, begin: float, order: dict[str, Any]) -> int | None:
    """Waits for the child to end, and kills it when that is due. None: it took longer than its time."""
    kill_at, give_up_at = (begin + (order.get(key) or float("inf")) for key in ("after_s", "timeout"))
    timed_out = False
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return None if timed_out else os.waitstatus_to_exitcode(status)
        now = time.perf_counter()
        if now > min(kill_at, give_up_at):
            timed_out = now > give_up_at
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def _live(order: dict[str, Any], telling: int) -> NoReturn:
    """The child: `run.py` with these arguments, to its end or its death."""
    for descriptor, file in enumerate((os.devnull, order["stdout"], order["stderr"])):
        os.dup2(os.open(file, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    code, calls = 1, 0

    def count(frame: Any, event: str, called: Any) -> None:
        nonlocal calls
        if event not in ("call", "c_call") or frame.f_code.co_filename not in WRITING:
            return
        calls += 1
        if calls == order.get("at_call"):
            name = getattr(called, "__name__", "")
            os.write(telling, f"{calls} {Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name} {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    try:
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        sys.path[1:1] = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
        sys.argv = [str(RUN), *order["arguments"]]
        random.seed()
        if order["counts"] and order.get("after_s") is None:
            sys.setprofile(count)
        runpy.run_path(str(RUN), run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(error.code + "\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.setprofile(None)
        threading._shutdown()
        atexit._run_exitfuncs()
        if order["counts"]:
            os.write(telling, f"{calls} the end\n".encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

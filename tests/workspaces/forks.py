"""Runs `run.py` again and again in forks of one process, which has imported everything, and kills some of them.

A fork starts in a tenth of a second where a new process imports for five. Reads a JSON object per line: `arguments` of
the command line, a file for its `stderr`, and when it is killed, if ever: `after_s` or `at_call`. Answers with one:
`returncode`, `seconds`, `calls` and `where` it died.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

RUN = Path(__file__).parents[2] / "run.py"
WRITING = [
    *(str(RUN.parent / "workspaces" / name) for name in (
        "assessment.py", "base.py", "checkpoint.py", "logger.py", "record.py", "rollouts.py", "train.py",
        "train_state.py", "video.py",
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
    if order.get("after_s") is not None:
        time.sleep(order["after_s"])
        os.kill(pid, signal.SIGKILL)  # of a child that has ended, too: nobody has waited for it yet
    with os.fdopen(told) as pipe:
        last = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    calls, _, where = (last[-1] if last else "0 some time").partition(" ")
    seconds = time.perf_counter() - begin
    code = os.waitstatus_to_exitcode(status)
    return {"returncode": code, "seconds": seconds, "calls": int(calls), "where": where}


def _live(order: dict[str, Any], telling: int) -> None:
    """The child: `run.py` with these arguments, to its end or its death. Does not return."""
    os.dup2(os.open(order["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(2, 1)
    sys.argv = [str(RUN), *order["arguments"]]
    calls, code = 0, 0

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
        if order.get("after_s") is None:
            sys.setprofile(count)
        runpy.run_path(str(RUN), run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    finally:
        sys.setprofile(None)
        os.write(telling, f"{calls} the end\n".encode())
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()

"""Base of all commands: an exclusive run directory, logging, device selection, a recorded exit status."""

import contextlib
import errno
import itertools
import logging
import multiprocessing
import sys
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, ClassVar, Literal

import torch
from omegaconf import OmegaConf
from tqdm.contrib.logging import logging_redirect_tqdm

from dp import devices, distributed, kernels
from dp.files import lock, write_bytes
from dp.kernels.calibration import AVAILABLE, fastest_num_threads
from workspaces import record
from workspaces.config import Config
from workspaces.errors import Interrupted, explain
from workspaces.foreign import check_inside
from workspaces.logger import resolve_mode, start_service

log = logging.getLogger(__name__)


class Workspace:
    """Base class of all commands. A context manager: entering sets the process up, leaving records how the run ended.

    The constructor checks its arguments and sets nothing outside the object.
    """

    computes: ClassVar[bool] = True
    """Whether the command runs a policy. Commands that only read files time no threads and start no wandb."""

    verb: ClassVar[str | None] = None
    """Name in `workspace=` of a command whose results fill a directory. Another one must not write there."""

    trains: ClassVar[bool] = False
    """Whether its run resumes from the configuration in its own directory."""

    resolves: ClassVar[bool] = True
    """Whether the settings are the command's own. A command that opens a checkpoint takes most from there."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = devices.choose_device(config["device"])
        self.run_dir = Path(config["run_dir"] or default_run_dir(config))
        self.score: float | None = None
        self.overrides = record.overrides()  # that describe the run
        self._inode: tuple[int, int] | None = None
        self.packages: Sequence[str] = ()  # the task's, whose versions are recorded
        self._lock: IO[str] | None = None
        self._recorded = False
        self._log_file: logging.FileHandler | None = None
        self._kernels = kernels.use(config["kernels"])
        self._redirect = logging_redirect_tqdm()

    def run(self) -> float | None:
        """Does the work. A sweep optimises the return value."""
        raise NotImplementedError

    def close(self, failed: bool) -> None:
        """Closes everything that `run` opened."""

    def use_threads(self, n_threads: int | Literal["auto"]) -> None:
        """Lets the CPU compute with `n_threads`; auto: with one or all it has, whichever is faster now.

        Results agree to the bit only between runs of the same number. Raises ValueError for anything else.
        """
        if n_threads == "auto":
            n_threads, seconds = distributed.same(fastest_num_threads(AVAILABLE))
            if AVAILABLE > 1:
                timed = ", ".join(f"{1000 * s:.0f} ms with {n}" for n, s in seconds.items())
                log.info("CPU threads: %d (the same work took %s)", n_threads, timed)
        if not isinstance(n_threads, int) or n_threads < 1:
            raise ValueError(f"n_threads={n_threads}, expected auto or a whole number of at least 1")
        torch.set_num_threads(n_threads)

    def take_run_dir(self) -> None:
        """Creates the run directory and locks it for this process, once.

        Raises ValueError if another process has it, or if it cannot be one.
        """
        if self._lock is not None or not distributed.writes():
            return
        if not str(self.run_dir).isprintable():
            raise ValueError(f"run_dir={str(self.run_dir)!r} has characters that no command could show")
        try:
            if self.config["run_dir"] is None:
                self.run_dir = create_new(self.run_dir)
            check_inside(self.run_dir)
            self._lock = lock(self.run_dir / ".lock")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(f"run_dir={self.run_dir} cannot be used: {error.strerror}. Choose another") from error
        if self._lock is None:
            raise ValueError(f"{self.run_dir} is in use by another process: wait for it or set another run_dir")
        self._inode = _inode(self.run_dir)
        held = (record.read_or_none(self.run_dir) or {}).get("verb", self.verb)
        if held != self.verb and self.verb is not None:
            raise ValueError(f"{self.run_dir} holds what workspace={held} wrote: set another run_dir")

    def check_run_dir(self) -> None:
        """Raises ValueError if the run directory is no longer the one that this process took. Writing would create it
        again, empty."""
        if self._inode is not None and self._inode != _inode(self.run_dir):
            raise ValueError(f"{self.run_dir} was deleted or replaced during the run: nothing more is written there")

    def begin_run(self, facts: Mapping[str, object] | None = None) -> None:
        """Begins run.log and run.json, with `facts` in it, and writes config.yaml, in the run directory."""
        if not distributed.writes():
            return
        self._log_file = logging.FileHandler(self.run_dir / "run.log")
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self._log_file)
        log.info("run directory: %s", self.run_dir)
        write_bytes(self.run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(self.config)).encode())
        facts = {"n_threads": torch.get_num_threads(), **(facts or {})}
        assert self.verb is not None
        record.begin(self.run_dir, self.verb, self.device, self.packages, self.overrides, facts)
        self._recorded = True

    def __enter__(self) -> "Workspace":
        self._kernels.__enter__()
        if self.computes and distributed.writes() and resolve_mode(self.config["logger"]["mode"]) != "disabled":
            threading.Thread(target=start_service, daemon=True).start()  # while others read data and draw weights
        logging.raiseExceptions = False  # a full disk costs lines of run.log, and says so where it matters
        level = logging.INFO if distributed.writes() else logging.ERROR  # what one rank says, all would
        logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
        logging.captureWarnings(True)
        self._redirect.__enter__()
        try:
            self._set_up_process()
        except BaseException:
            self._redirect.__exit__(None, None, None)
            raise
        return self

    def _set_up_process(self) -> None:
        """Sets what is global in a process: the start of workers, and torch's arithmetic."""
        if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
            multiprocessing.set_start_method(None, force=True)  # a job of joblib's: our workers do not know its method
        devices.set_up(self.device)
        distributed.join(self.device)
        if self.computes:
            self.use_threads(self.config["n_threads"])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = isinstance(error, Exception) and not isinstance(error, Interrupted)
        state: record.State = "finished" if error is None else "failed" if failed else "interrupted"
        left = contextlib.suppress(OSError, ValueError) if error is not None else contextlib.nullcontext()
        with left, contextlib.ExitStack() as last_to_first:  # each of these happens, whatever the others raise
            if error is None:
                last_to_first.callback(distributed.leave)
            if self._lock is not None:
                last_to_first.callback(self._lock.close)
            last_to_first.callback(self._end_log, kind, error, trace)
            last_to_first.callback(self._end_record, state, explain(error) if failed else None)
            last_to_first.callback(self._kernels.__exit__, None, None, None)
            last_to_first.callback(self._redirect.__exit__, None, None, None)
            last_to_first.callback(self.close, failed)

    def _end_record(self, state: record.State, reason: str | None) -> None:
        if self._recorded:
            self.check_run_dir()
            record.end(self.run_dir, state, self.score, reason)

    def _end_log(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log_file is None:
            return
        if isinstance(error, Interrupted):
            self._log_file.handle(log.makeRecord(log.name, logging.INFO, __file__, 0, str(error), (), None))
        elif isinstance(error, Exception) and kind is not None:
            failure = log.makeRecord(log.name, logging.ERROR, __file__, 0, "failed", (), (kind, error, trace))
            self._log_file.handle(failure)
        logging.getLogger().removeHandler(self._log_file)
        self._log_file.close()


def _inode(path: Path) -> tuple[int, int] | None:
    """Identity of a directory, whatever its name; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def create_new(path: Path) -> Path:
    """Creates the directory `path`, or path-1, path-2 and so on if it exists. Returns the path."""
    for number in itertools.count():
        candidate = path.with_name(f"{path.name}-{number}") if number else path
        with contextlib.suppress(FileExistsError):
            candidate.mkdir(parents=True)
            return candidate
    raise AssertionError


def default_run_dir(config: Config) -> Path:
    """outputs/<experiment>/<timestamp>-<seed>."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")[:-3]
    return Path("outputs") / config["name"] / f"{stamp}-{config['seed']}"

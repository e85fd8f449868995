"""Logs numbers and pictures: to metrics.jsonl always, to wandb unless disabled."""

import atexit
import contextlib
import json
import logging
import math
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, get_args

import platformdirs

from workspaces.config import Config
from workspaces.startup import short_turns

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]


TIME_LIMIT_S = 60
"""Longest wait for wandb: for one call, and for its last uploads when a run ends."""


FINISH = {"finish_timeout": 0.75 * TIME_LIMIT_S, "finish_timeout_raises": True}


class Logger:
    """Writes metrics of a run.

    Args:
        run_dir: an existing directory.
        config: the whole resolved configuration, for wandb.
        job_type: the verb: "train", "evaluate", "report".
        mode: online, offline, disabled (wandb is not even imported), or auto: $WANDB_MODE or $WANDB_DISABLED if one is
            set, else online when logged in, else offline.
        project, entity, group, tags, name, notes: wandb's. If one is null, wandb reads its own variable
            ($WANDB_PROJECT, $WANDB_ENTITY, $WANDB_RUN_GROUP, $WANDB_TAGS, $WANDB_NAME, $WANDB_NOTES); without it, the
            only tag is the experiment's name, and the run's name is that and the directory's.
        run_id: of the wandb run to continue, or None for a new one.

    No failure of wandb ends a run, and none delays it by more than `TIME_LIMIT_S`: it is reported once, and wandb is
    left alone.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        job_type: str,
        mode: Mode,
        project: str | None = None,
        group: str | None = None,
        tags: Sequence[str] | None = None,
        run_id: str | None = None,
        entity: str | None = None,
        name: str | None = None,
        notes: str | None = None,
    ) -> None:
        self.run_id = run_id or secrets.token_hex(4)
        self._path = run_dir / "metrics.jsonl"
        self._wandb: Any = None
        self._run: Any = None
        self._media = True
        resolved = resolve_mode(mode)
        if resolved == "disabled":
            return
        environment = os.environ
        arguments = {
            "project": project,
            "entity": entity,
            "group": group,
            "tags": tags or (None if environment.get("WANDB_TAGS") else [config["name"]]),
            "name": name or environment.get("WANDB_NAME") or f"{config['name']}-{run_dir.name}",
            "notes": notes,
            "job_type": job_type,
            "dir": run_dir,
            "config": config,
        }
        try:
            self._start_wandb(resolved, arguments)
        except Exception as error:
            self._leave(error)

    def _start_wandb(self, mode: str, arguments: Mapping[str, Any]) -> None:
        import wandb

        _use_writable("WANDB_DATA_DIR", platformdirs.user_data_path("wandb"), lambda: arguments["dir"] / "wandb")
        self._wandb = wandb
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        try:
            self._run = self._init(mode, arguments)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("wandb cannot be reached (%s): continuing offline", error)
            _within(TIME_LIMIT_S, wandb.teardown)  # otherwise the id counts as in use
            self._run, mode = self._init("offline", arguments), "offline"
        self.run_id = self._run.id  # a sweep agent of wandb gives its own
        self._run.define_metric("step", hidden=True)
        for namespace in ("train/*", "val/*", "rollout/*", "time/*"):
            self._run.define_metric(namespace, step_metric="step")
        self._run.define_metric("rollout/score", step_metric="step", summary="max,last")
        if mode == "offline":
            log.info("wandb is offline; to upload this run later: wandb sync %s", Path(self._run.dir).parent)

    def _init(self, mode: str, arguments: Mapping[str, Any]) -> Any:
        settings = self._wandb.Settings(silent=True, init_timeout=30, **FINISH)
        resume = "allow" if mode == "online" else None
        return self._wandb.init(mode=mode, id=self.run_id, resume=resume, settings=settings, **arguments)

    @cached_property
    def _file(self) -> IO[bytes]:
        return self._path.open("ab")

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl so far."""
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, offset: int) -> None:
        """Cuts metrics.jsonl off at `offset`: a resumed run writes the later lines again, unchanged."""
        if offset > self.offset:  # lost with a power cut, or the checkpoint is not this run's
            log.warning("%s is shorter than it was at the checkpoint: its last lines are lost", self._path)
        self._file.truncate(min(offset, self.offset))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs one line of numbers. `step` counts optimizer steps. NaN and infinity, which JSON lacks, become null."""
        row = {"step": step, **metrics}
        self._file.write(json.dumps(finite(row), allow_nan=False).encode() + b"\n")
        self._file.flush()
        self._send(lambda: self._run.log(row))

    def log_episodes(self, step: int, rows: Sequence[Mapping[str, Any]], videos: Mapping[int, Path]) -> None:
        """Logs episodes as a wandb table with their videos (seed -> file), which stay in the run directory."""

        def send() -> None:
            columns = [*rows[0]]
            table = self._wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
            media = {f"media/{seed}": self._wandb.Video(str(path), format="mp4") for seed, path in videos.items()}
            self._run.log({"step": step, "rollout/episodes": table, **media})

        self._send_media(send)

    def log_report(self, tables: Mapping[str, "pd.DataFrame"], pictures: Mapping[str, Path], page: Path) -> None:
        """Logs tables and pictures by name, and the page that holds them all as an artifact."""

        def send() -> None:
            sent = {f"report/{name}": self._table(frame) for name, frame in tables.items()}
            images = {f"report/figures/{name}": self._wandb.Image(str(path)) for name, path in pictures.items()}
            self._run.log({**sent, **images})
            artifact = self._wandb.Artifact(f"report-{self.run_id}", type="report")
            artifact.add_file(str(page))
            self._run.log_artifact(artifact)

        self._send_media(send)

    def _table(self, frame: "pd.DataFrame") -> Any:
        rows = frame.astype(object).where(frame.notna(), None).values.tolist()
        return self._wandb.Table(columns=[str(c) for c in frame.columns], data=rows, allow_mixed_types=True)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Sets the values that wandb's overview shows for the run."""
        self._send(lambda: self._run.summary.update(dict(values)))

    def close(self, failed: bool) -> None:
        """Ends the wandb run, as failed or finished."""
        self._send(lambda: self._run.finish(exit_code=1 if failed else 0))
        if "_file" in self.__dict__:
            self._file.close()

    def _send(self, call: Callable[[], object]) -> None:
        if self._run is not None:
            try:
                _within(TIME_LIMIT_S, call)
            except Exception as error:
                self._leave(error)

    def _send_media(self, call: Callable[[], object]) -> None:
        """Sends media, which may fail while numbers still get through, for example for lack of a codec."""
        if self._run is None or not self._media:
            return
        try:
            _within(TIME_LIMIT_S, call)
        except TimeoutError as error:
            self._leave(error)
        except Exception as error:
            log.warning("wandb receives no more tables and videos (the run directory has them): %s", error)
            self._media = False

    def _leave(self, error: Exception) -> None:
        log.warning("wandb failed and is not used any more (metrics.jsonl has everything): %s", error)
        self._run = None
        if isinstance(error, TimeoutError):
            _kill_service(self._wandb)


class NoLogger:
    """Stands in for `Logger` on ranks that write nothing."""

    run_id, offset = "", 0

    def truncate(self, offset: int) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def log_episodes(self, step: int, rows: Sequence[Mapping[str, Any]], videos: Mapping[int, Path]) -> None: ...

    def summarize(self, values: Mapping[str, Any]) -> None: ...

    def close(self, failed: bool) -> None: ...


def start_service() -> None:
    """Starts wandb's service, which takes a second, in a thread. If it fails, the logger will report that."""
    with contextlib.suppress(Exception), short_turns():
        _use_writable("WANDB_CACHE_DIR", platformdirs.user_cache_path("wandb"), _temporary)
        _use_writable("WANDB_CONFIG_DIR", platformdirs.user_config_path("wandb"), _temporary)
        import wandb

        wandb.setup()
        import wandb.apis.public  # `wandb.init` imports it, too


def _temporary() -> str:
    folder = tempfile.mkdtemp(prefix="wandb-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def resolve_mode(mode: str) -> str:
    """`logger.mode`, with wandb's own variables in place of auto."""
    if mode != "auto":
        return mode
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    wanted = os.environ.get("WANDB_MODE", "").lower()
    return {"dryrun": "offline", "run": "online"}.get(wanted, wanted if wanted in get_args(Mode) else "auto")


def finite(value: Any) -> Any:
    """`value` with None in place of every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Runs `call` in a thread. Raises its errors, or abandons the thread and raises TimeoutError after `seconds`."""
    outcome: list[Exception] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds:.0f} s. To upload its folder later: wandb sync DIR")
    if outcome:
        raise outcome[0]


def _kill_service(wandb: Any) -> None:
    """Kills wandb's own process: at exit, wandb would wait for it endlessly. It has no public handle."""
    with contextlib.suppress(Exception):
        wandb.setup()._connection._proc._process.kill()
        _within(TIME_LIMIT_S, wandb.teardown)  # takes the hook that runs at exit away, and fails


def _use_writable(variable: str, default: Path, instead: Callable[[], Path | str]) -> None:
    """Points wandb elsewhere if the home directory, where it keeps these files, is not writable."""
    if variable not in os.environ and not _writable(default):
        os.environ[variable] = str(instead())


def _writable(folder: Path) -> bool:
    existing = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    return existing.is_dir() and os.access(existing, os.W_OK)

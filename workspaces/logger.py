"""Where numbers and pictures go: metrics.jsonl always, wandb unless disabled."""

import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from workspaces.config import Config

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]


class Logger:
    """Writes metrics of a run.

    Args:
        run_dir: an existing directory.
        config: the whole resolved configuration, for wandb.
        job_type: the verb: "train", "evaluate", "report".
        mode: auto (online when logged in, else offline), online, offline or disabled (wandb is not even imported).
        project, group, tags: wandb's; `group` may be null, and `tags`: then the experiment's name is one.
        run_id: of the wandb run to continue, or None for a new one.

    No failure of wandb ends a run: it is reported once, and wandb is left alone.
    """

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        job_type: str,
        mode: Mode,
        project: str,
        group: str | None,
        tags: Sequence[str] | None,
        run_id: str | None = None,
    ) -> None:
        self.run_id = run_id or secrets.token_hex(4)
        self._path = run_dir / "metrics.jsonl"
        self._wandb: Any = None
        self._run: Any = None
        if mode != "disabled":
            self._guard(lambda: self._start_wandb(run_dir, config, job_type, mode, project, group, tags))

    def _start_wandb(
        self,
        run_dir: Path,
        config: Config,
        job_type: str,
        mode: str,
        project: str,
        group: str | None,
        tags: Sequence[str] | None,
    ) -> None:
        import wandb

        def start(mode: str) -> Any:
            return wandb.init(
                mode=mode,  # type: ignore[arg-type]
                project=project,
                group=group,
                tags=tags or [config["name"]],
                job_type=job_type,
                id=self.run_id,
                resume="allow" if mode == "online" else None,
                name=f"{config['name']}-{run_dir.name}",
                dir=run_dir,
                config=config,
                settings=wandb.Settings(silent=True, init_timeout=30),
            )

        self._wandb = wandb
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        try:
            self._run = start(mode)
        except Exception as error:
            if mode == "offline":
                raise
            log.warning("wandb cannot be reached (%s): going on offline", error)
            self._run, mode = start("offline"), "offline"
        self._run.define_metric("step", hidden=True)
        for namespace in ("train/*", "val/*", "rollout/*", "time/*"):
            self._run.define_metric(namespace, step_metric="step")
        self._run.define_metric("rollout/score", step_metric="step", summary="max,last")
        if mode == "offline":
            log.info("wandb is offline; to upload this run later: wandb sync %s", Path(self._run.dir).parent)

    @cached_property
    def _file(self) -> IO[bytes]:
        return self._path.open("ab")

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl so far."""
        return self._file.seek(0, os.SEEK_END)

    def truncate(self, offset: int) -> None:
        """Forgets the lines of metrics.jsonl after `offset`: a resumed run writes them again, the same."""
        if offset > self.offset:  # lost with a power cut, or the checkpoint is not this run's
            log.warning("%s is shorter than the checkpoint says: its last lines are lost", self._path)
        self._file.truncate(min(offset, self.offset))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line of numbers. `step` counts optimizer steps."""
        row = {"step": step, **metrics}
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()
        if self._run is not None:
            self._guard(lambda: self._run.log(row))

    def log_episodes(self, step: int, rows: Sequence[Mapping[str, Any]], videos: Mapping[int, Path]) -> None:
        """Episodes as a wandb table, with the videos (seed -> file) beside; the files stay in the run directory."""
        if self._run is None:
            return

        def send() -> None:
            columns = [*rows[0]]
            table = self._wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
            media = {f"media/{seed}": self._wandb.Video(str(path), format="mp4") for seed, path in videos.items()}
            self._run.log({"step": step, "rollout/episodes": table, **media})

        self._guard(send)

    def log_report(self, tables: Mapping[str, "pd.DataFrame"], pictures: Mapping[str, Path], page: Path) -> None:
        """Tables and pictures by name, and the page that has them all as an artifact."""
        if self._run is None:
            return

        def send() -> None:
            sent = {f"report/{name}": self._table(frame) for name, frame in tables.items()}
            images = {f"report/figures/{name}": self._wandb.Image(str(path)) for name, path in pictures.items()}
            self._run.log({**sent, **images})
            artifact = self._wandb.Artifact(f"report-{self.run_id}", type="report")
            artifact.add_file(str(page))
            self._run.log_artifact(artifact)

        self._guard(send)

    def _table(self, frame: "pd.DataFrame") -> Any:
        rows = frame.astype(object).where(frame.notna(), None).values.tolist()
        return self._wandb.Table(columns=[str(c) for c in frame.columns], data=rows, allow_mixed_types=True)

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Values that stand for the whole run on wandb's overview."""
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(dict(values)))

    def close(self, failed: bool) -> None:
        """Ends the wandb run, as failed or finished."""
        if self._run is not None:
            self._guard(lambda: self._run.finish(exit_code=1 if failed else 0))
        if "_file" in self.__dict__:
            self._file.close()

    def _guard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever it is, training goes on
            log.warning("wandb failed and is left alone from now on (metrics.jsonl has everything): %s", error)
            self._run = None

"""The last lines of a training: its result, its best checkpoint, and the next command to type."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workspaces import resume
from workspaces.assessment import VAL_METRIC
from workspaces.config import Config
from workspaces.timer import duration
from workspaces.train_state import TrainState

log = logging.getLogger(__name__)


def say(state: TrainState, run_dir: Path, config: Config) -> None:
    """Logs the closing lines of the run in `run_dir`."""
    best = state.best[0] if state.best else None
    file = run_dir / "checkpoints" / (best["file"] if best is not None else "last.pt")
    log.info("finished: %d steps in %s, %s: %s", state.step, duration(state.timer.training_s()), best_of(best), file)
    if config["task"]["env"] is not None:
        log.info("evaluate it: %s", resume.how_to_evaluate(file, config))
    longer = f"workspace.num_steps={2 * config['workspace']['num_steps']}"
    log.info("train it longer: %s", resume.how_to_resume(run_dir, config, longer))


def best_of(best: Mapping[str, Any] | None) -> str:
    """Describes the best checkpoint, an entry of `TrainState.best`."""
    if best is None:
        return "last checkpoint"
    if best.get("metric") == VAL_METRIC:
        return f"best {VAL_METRIC} {-best['score']:.4g} at step {best['step']}"
    return f"best score {best['score']:.3f} at step {best['step']}"

"""How a training begins: from fresh weights, from those of another run, or where its own run stopped."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dp.distributed import same
from dp.kernels.calibration import bf16_pays
from dp.policy import DiffusionPolicy
from workspaces import checkpoint
from workspaces.base import Workspace
from workspaces.config import Config
from workspaces.evaluate import load_teacher, load_weights
from workspaces.resume import check_same, differences
from workspaces.schema import check
from workspaces.settings import role
from workspaces.train_state import TrainState
from workspaces.trust import CONFIG, TRAINING

log = logging.getLogger(__name__)


def begin_from(state: TrainState, config: Config, run_dir: Path) -> None:
    """Gives a fresh state the averaged weights of the checkpoint `config["init_from"]`, with its normalisation.

    The normalisation belongs to the weights: new data are mapped with the old statistics, so that the policy first
    computes what it computed there. A run that has begun in `run_dir` no longer needs the file, unless the policy in it
    is the teacher. Raises ValueError if the weights are of another architecture, naming the first difference, or cannot
    teach; warns if they fit, but were trained for something else.
    """
    distils = hasattr(state.policy.objective, "teach_with")
    if distils:
        _give_teacher(state.policy, config)
    last = run_dir / "checkpoints/last.pt"
    if last.is_file():
        state.policy.load_state_dict(checkpoint.load(last)["policy"])
        return
    path = checkpoint.find(str(config["init_from"]))
    try:
        saved = checkpoint.load(path, config)
        if "ema" not in saved:
            raise ValueError(f"checkpoint={path} holds no policy")
        for policy in (state.policy, state.ema.model):
            load_weights(policy, saved["ema"]["model"], path)
    except ValueError as error:
        alike = ". A student needs the encoder and the denoiser of its teacher" if distils else ""
        raise ValueError(str(error).replace("checkpoint=", "init_from=", 1) + alike) from None
    log.info("initial weights and normalisation: %s, step %s", path, saved.get("step"))
    counts = partial(_says_what_weights_mean, distils=distils)
    if "config" in saved and (differing := differences(saved["config"], config, counts)):
        log.warning(
            "init_from=%s was trained for something else: %s. The run goes on from its weights", path, differing
        )


def _give_teacher(policy: DiffusionPolicy, config: Config) -> None:
    """Gives an objective that distils the policy `config["init_from"]`. Raises ValueError for one that cannot teach."""
    student: Any = policy.objective
    try:
        teacher = load_teacher(str(config["init_from"]), config).to(policy.device)
        student.teach_with(teacher.objective, teacher.denoiser)
    except ValueError as error:
        if str(error).startswith("checkpoint="):
            raise ValueError(str(error).replace("checkpoint=", "init_from=", 1)) from None
        raise ValueError(f"init_from={config['init_from']} cannot teach: {error}") from None


def _says_what_weights_mean(key: str, distils: bool) -> bool:
    if distils and key.startswith("objective."):
        return False
    return role(key) == "identity" and key not in ("name", "init_from", "noise_draws", "task.name")


def warn_if_short(config: Config) -> None:
    """Warns if the learning rate only rises and never reaches `optimizer.lr`."""
    warm_up, num_steps = config["lr_schedule"].get("num_warmup_steps"), config["workspace"]["num_steps"]
    if isinstance(warm_up, int) and warm_up >= num_steps:
        log.warning(
            "lr_schedule.num_warmup_steps=%d, but the run has only workspace.num_steps=%d: the learning rate never "
            "reaches optimizer.lr. Set lr_schedule.num_warmup_steps=%d, for example",
            warm_up, num_steps, num_steps // 10,
        )  # fmt: skip


def warn_if_inexact(saved: Mapping[str, Any], precision: str) -> None:
    """Warns if the user chose another way to compute than the run in `saved`."""
    before = {"workspace.precision": saved.get("precision"), "n_threads": saved.get("n_threads")}
    now = {"workspace.precision": precision, "n_threads": torch.get_num_threads()}
    changed = [f"{key}={now[key]} (before: {old})" for key, old in before.items() if old not in (None, now[key])]
    if changed:
        log.warning("the run resumes with %s: not to the bit as it would have without", " and ".join(changed))


def choose_precision(precision: str, device: torch.device, saved: Mapping[str, Any] | None) -> str:
    """fp32 or bf16. auto is timed on `device`; a resumed run keeps the choice in `saved`."""
    if precision == "auto" and saved is not None:
        return saved.get("precision", saved["config"]["workspace"]["precision"])
    with torch.random.fork_rng(devices=[]):  # timing draws numbers, and the weights have been drawn already
        pays = precision != "fp32" and same(bf16_pays(device))
    if precision == "bf16" and not pays:
        log.warning("This device emulates bfloat16, slowly. workspace.precision=auto takes the faster one.")
    return precision if precision != "auto" else "bf16" if pays else "fp32"


def load_run(run_dir: Path, config: Config, left_open: tuple[object, ...] = ()) -> dict[str, Any] | None:
    """The last checkpoint of the run in `run_dir`; None if there is none.

    left_open: values of `config` that are decided later.

    Raises ValueError if that run was begun with settings that `config` cannot resume.
    """
    last = run_dir / "checkpoints/last.pt"
    if not last.exists() and (best := sorted(last.parent.glob("best-*.pt"))):
        raise ValueError(
            f"{run_dir} has lost checkpoints/last.pt, without which its run cannot resume. To train from its best "
            f"checkpoint on, in another run_dir: init_from={best[-1]}"
        )
    if not last.exists():
        return None
    state = checkpoint.load(last)
    checkpoint.check_complete(state, ("config",), f"checkpoint={last}")
    check(state["config"], CONFIG, f"checkpoint={last}")
    check_same(state["config"], config, run_dir, left_open)
    checkpoint.check_complete(state, TRAINING, f"checkpoint={last}")
    check_length(state["step"], config, run_dir)
    return {"wandb_id": None, "rng_cuda": None, **state}


def check_length(step: int, config: Config, run_dir: Path) -> None:
    """Raises ValueError if the run in `run_dir` has done more steps than `config` wants."""
    wanted = config["workspace"]["num_steps"]
    if step > wanted:
        raise ValueError(
            f"workspace.num_steps={wanted}, but the run in {run_dir} has already done {step} steps. Set "
            f"workspace.num_steps={step} or more to resume it, or another run_dir to begin a shorter run"
        )


def arithmetic(workspace: Workspace, precision: str, saved: Mapping[str, Any] | None) -> str:
    """The precision to train in. A resumed run keeps its own, and its number of threads, where the user says auto."""
    chosen = choose_precision(precision, workspace.device, saved)
    if saved is not None and workspace.config["n_threads"] == "auto" and saved.get("n_threads") is not None:
        workspace.use_threads(saved["n_threads"])  # the last bit of a sum depends on their number
    return chosen


def take_up(state: TrainState, saved: Mapping[str, Any] | None, config: Config, run_dir: Path) -> None:
    """Gives a fresh `state` the content of `saved`, or warns of what a new run may not want."""
    if saved is None:
        return warn_if_short(config)
    state.load_state_dict(saved)
    log.info("resuming %s at step %d", run_dir, state.step)
    warn_if_inexact(saved, state.precision)

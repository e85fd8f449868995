"""Gives each job of a sweep its own GPU, whichever launcher runs it."""

from collections.abc import Mapping
from typing import Any


def check_launcher(launcher: Mapping[str, Any], device: str, n_gpus: int) -> None:
    """Raises ValueError if `launcher` would give a job no GPU of this machine's `n_gpus`, or one to several jobs."""
    if device not in ("auto", "cuda") or n_gpus == 0:
        return
    target = launcher["_target_"]
    if "ray" in target and not launcher.get("ray", {}).get("remote", {}).get("num_gpus"):
        raise ValueError(
            "hydra.launcher.ray.remote.num_gpus=0 hides the GPUs from all jobs: set "
            "hydra.launcher.ray.remote.num_gpus=1, or device=cpu"
        )
    if "joblib" in target and not 1 <= launcher["n_jobs"] <= n_gpus:
        raise ValueError(
            f"hydra.launcher.n_jobs={launcher['n_jobs']} puts several jobs on one GPU: set "
            f"hydra.launcher.n_jobs={n_gpus} (one for each GPU here), or device=cpu"
        )
    if "submitit" in target and "LocalLauncher" in target:
        raise ValueError(
            "+launcher=submitit_local puts all jobs on one GPU: use +launcher=joblib "
            f"hydra.launcher.n_jobs={n_gpus}, or device=cpu"
        )


def device_of(number: int, launcher: Mapping[str, Any], device: str, n_gpus: int) -> list[str]:
    """The override that gives job `number` its GPU if the launcher (joblib) does not."""
    shared = "joblib" in launcher["_target_"] and n_gpus > 1 and device in ("auto", "cuda")
    return [f"device=cuda:{number % n_gpus}"] if shared else []

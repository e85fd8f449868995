"""The state of a training run: everything that its next steps depend on."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dp.ema import EMA
from dp.modalities import Normalizer
from dp.policy import DiffusionPolicy
from workspaces import build, checkpoint
from workspaces.base import Config
from workspaces.schema import COUNT, check
from workspaces.timer import Timer
from workspaces.trust import check_like

log = logging.getLogger(__name__)


MAX_SAVING = 0.05
"""Share of the time that periodic checkpoints may take. A GPU makes 1,000 steps in the time that it takes to write 1.2
GB twice."""


class TrainState:
    """The content of a training checkpoint, next to the configuration. Training resumes from it to the bit.

    step: optimizer steps taken. evaluated: whether this step's assessment is done. best: the best checkpoints,
    best first, each {"step", "file", "score", ...}. pending: (loss, gradient norm) of each step since the last log, on
    the device. metrics_offset: bytes of metrics.jsonl that belong to the state. precision: fp32 or bf16. n_threads: CPU
    threads of the process that saved the state; None if they are not known.
    """

    def __init__(
        self,
        policy: DiffusionPolicy,
        ema: EMA[DiffusionPolicy],
        optimizer: torch.optim.Optimizer,
        lr_schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        self.policy, self.ema, self.optimizer, self.lr_schedule = policy, ema, optimizer, lr_schedule
        self.precision = "fp32"
        self.step, self.evaluated = 0, False
        self.best: list[dict[str, Any]] = []
        self.pending: list[Tensor] = []
        self.metrics_offset = 0
        self.n_threads: int | None = None
        self.timer = Timer()
        self._saved_at, self._saving_s = -math.inf, 0.0

    @classmethod
    def fresh(cls, config: Config, normalizer: Normalizer, device: torch.device) -> "TrainState":
        """The state before the first step: weights as torch's generator draws them."""
        policy = build.policy(config, normalizer).to(device)
        ema = build.ema(config, policy)
        optimizer = build.optimizer(config, parameter_groups(policy, config["optimizer"]))
        return cls(policy, ema, optimizer, build.lr_schedule(config, optimizer))

    def advance(self) -> None:
        """Ends an optimizer step: the learning rate follows its schedule, and the EMA the weights."""
        self.lr_schedule.step()
        self.ema.update(self.policy)
        self.step, self.evaluated = self.step + 1, False

    def __str__(self) -> str:
        sizes = [(p.numel(), p.requires_grad) for p in self.policy.parameters()]
        n_parameters, n_trained = sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)
        frozen = f" ({_in_millions(n_parameters - n_trained)} of them frozen)" if n_trained < n_parameters else ""
        device = self.policy.device
        threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
        return f"{_in_millions(n_parameters)} parameters{frozen} on {device}{threads}, {self.precision}"

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives, with the state of torch's random number generators."""
        kind = self.policy.device.type
        return {
            "policy": self.policy.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "precision": self.precision,
            "step": self.step,
            "evaluated": self.evaluated,
            "best": self.best,
            "pending": torch.stack(self.pending).cpu() if self.pending else torch.empty(0, 2),
            "metrics_offset": self.metrics_offset,
            "training_s": self.timer.training_s(),
            "n_threads": torch.get_num_threads(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.get_device_module(kind).get_rng_state() if kind in ("cuda", "mps") else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, except for `precision` (`choose_precision`).

        Checkpoints of earlier versions may lack `n_threads` and `precision`. Raises ValueError, with nothing restored,
        for a state of another policy or optimizer.
        """
        self._check_fits(state)
        self.policy.load_state_dict(state["policy"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        self.step, self.evaluated, self.best = state["step"], state["evaluated"], state["best"]
        self.pending = list(state["pending"].to(self.policy.device))
        self.metrics_offset, self.timer.before_s = state["metrics_offset"], state["training_s"]
        self.n_threads = state.get("n_threads")
        torch.set_rng_state(state["rng"])
        kind = self.policy.device.type
        if kind in ("cuda", "mps") and state["rng_cuda"] is not None:
            torch.get_device_module(kind).set_rng_state(state["rng_cuda"])

    def _check_fits(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if a part of `state` does not match the part that it replaces."""
        for name, part in (("policy", self.policy), ("optimizer", self.optimizer), ("lr_schedule", self.lr_schedule)):
            check_like(state[name], part.state_dict(), name)
        check_like(state["ema"]["model"], self.ema.model.state_dict(), "ema.model")
        check(state["ema"], {"num_updates": COUNT}, "ema")
        check(state["optimizer"], {"param_groups": list, "state": dict}, "optimizer")
        for name, saved, own in (
            ("policy", state["policy"], self.policy.state_dict()),
            ("ema.model", state["ema"]["model"], self.ema.model.state_dict()),
        ):
            if differing := sorted(own.keys() ^ saved.keys()):
                raise ValueError(f"{name} lacks {differing[0]}, or should not have it")
        self._check_moments(state["optimizer"]["state"])

    def _check_moments(self, moments_of: Mapping[Any, Any]) -> None:
        """Raises ValueError if the optimizer's running averages are of other parameters."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for number, moments in moments_of.items():
            if number not in range(len(parameters)) or not isinstance(moments, dict):
                raise ValueError(f"optimizer.state has {number!r:.40}, expected one of {len(parameters)} parameters")
            for name, moment in moments.items():
                if isinstance(moment, Tensor) and moment.ndim:
                    check_like(moment, parameters[number].detach(), f"optimizer.state[{number}].{name}")

    def save(self, run_dir: Path, about: Mapping[str, Any]) -> None:
        """Writes checkpoints/last.pt, with `about` next to the state, and deletes files that are no longer among the
        best.

        Raises ValueError instead if the weights are not finite any more.
        """
        self.check_finite(run_dir)
        begin, folder = time.monotonic(), run_dir / "checkpoints"
        checkpoint.save(folder / "last.pt", {**self.state_dict(), **about})
        self._saved_at, self._saving_s = time.monotonic(), time.monotonic() - begin
        # Only now: a last.pt that is older than a rollout may still name the files that this one does not.
        for file in folder.glob("best-*.pt"):
            if file.name not in [entry["file"] for entry in self.best]:
                file.unlink()

    def saving_pays(self) -> bool:
        """Whether another checkpoint, written like the last, costs at most MAX_SAVING of the time since that one."""
        since = time.monotonic() - self._saved_at
        return self._saving_s < 1 or self._saving_s <= MAX_SAVING * since

    def check_finite(self, run_dir: Path) -> None:
        """Raises ValueError naming the first step whose loss or gradient was not finite. Waits for the device."""
        if not self.pending:
            return
        bad = ~torch.isfinite(torch.stack(self.pending)).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            step = self.step - len(self.pending) + first + 1
            loss, grad_norm = self.pending[first].tolist()
            raise ValueError(
                f"training diverged at step {step}: loss {loss}, gradient norm {grad_norm}. What was saved before is "
                f"kept in {run_dir / 'checkpoints'}; try a smaller optimizer.lr or workspace.precision=fp32"
            )


def _in_millions(n: int) -> str:
    return f"{n / 1e6:.1f} M" if n >= 1e5 else f"{n / 1e3:.1f} k"


def parameter_groups(policy: DiffusionPolicy, settings: Mapping[str, Any]) -> list[Any]:
    """The parameters of `policy`, in groups, if `settings` of the optimizer treat them differently.

    encoder_lr: learning rate of the encoder; None: lr. norm_decay: weight decay of norms and biases, which are the
    parameters with one dimension; None: weight_decay. Raises ValueError for the rate of an encoder without weights.
    """
    encoder_lr, norm_decay = settings.get("encoder_lr"), settings.get("norm_decay")
    if encoder_lr is None and norm_decay is None:
        return list(policy.parameters())
    encoder = {id(p) for name, p in policy.named_parameters() if name.startswith("encoder.")}
    if encoder_lr is not None and not encoder:
        raise ValueError(f"optimizer.encoder_lr={encoder_lr}, but this encoder has no weights: leave it out")
    # Up to four groups, by whether the parameter is the encoder's and whether it has one dimension.
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for p in policy.parameters():
        groups.setdefault(
            (encoder_lr is not None and id(p) in encoder, norm_decay is not None and p.ndim < 2), []
        ).append(p)
    return [
        {"params": groups[key]}
        | ({"lr": encoder_lr} if key[0] else {})
        | ({"weight_decay": norm_decay} if key[1] else {})
        for key in sorted(groups)  # the denoiser's first: its learning rate is what is logged
    ]

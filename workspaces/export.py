"""Exports a policy for others: a folder for the Hub, LeRobot's format, ONNX, or a compiled program."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor

from dp.exports import aoti, lerobot, onnx
from dp.exports.actor import Actor
from dp.files import write_bytes
from dp.pretrained import CARD, upload
from workspaces import evaluate, model_card
from workspaces.arguments import MISSING, listed, shown
from workspaces.base import Config, Workspace
from workspaces.foreign import check_inside

log = logging.getLogger(__name__)

FORMATS = ("safetensors", "lerobot", "onnx", "aoti")

PROGRAMS: dict[str, ModuleType] = {"onnx": onnx, "aoti": aoti}

TOLERANCE = 1e-4
"""Largest difference of a normalised action from the policy's own."""

REPEATS = 20


class ExportWorkspace(Workspace):
    """Writes the averaged policy of `checkpoint` into the folder `to`.

    The sampler may be chosen anew, as for an evaluation: scheduler=ddim, scheduler.num_inference_steps, n_action_steps.

    Args:
        config: the composed configuration.
        evaluations: directories of evaluations, for the model card.
        repo: of the Hub, to upload the folder to.
        measure: whether to compare a program (onnx, aoti) with the policy, and to time both.

    Raises:
        ValueError: for an unknown format, and for a policy that the format cannot hold.
    """

    computes = False
    resolves: ClassVar[bool] = False

    def __init__(self, config: Config, evaluations: Sequence[str], repo: str | None, measure: bool) -> None:
        super().__init__(config)
        self.format, self.evaluations, self.repo, self.measure = config["format"], evaluations, repo, measure
        if self.format == MISSING or self.format not in FORMATS:
            raise ValueError(f"format={shown(self.format)}, expected {listed(FORMATS)}")
        if config["checkpoint"] is None:
            raise ValueError("set checkpoint=PATH: the policy to export")
        self.path, self.state = evaluate.read_policy(config["checkpoint"], config)
        self.policy_config = evaluate.as_typed(self.state, config)
        self.policy = evaluate.policy_of(self.path, self.state, self.policy_config).eval().requires_grad_(False)
        self.policy.facts = {**self.state, "config": self._own_config()}
        self.to = Path(config["to"] or Path("outputs") / f"{self.policy_config['name']}-{self.format}")
        if isinstance(config["n_threads"], int):
            self.use_threads(config["n_threads"])

    def _own_config(self) -> Config:
        """The training's configuration with the chosen sampler, and without the places of its machine."""
        chosen = {key: self.policy_config[key] for key in ("scheduler", "n_action_steps", "encoder")}
        own = {**self.state["config"], **chosen, "run_dir": None, "init_from": None, "checkpoint": None}
        return {**own, "dataset": {**own["dataset"], "path": None}} if isinstance(own.get("dataset"), dict) else own

    def run(self) -> None:
        check_inside(self.to)
        if self.format == "safetensors":
            self.policy.save_pretrained(self.to, self._card("dp"))
        elif self.format == "lerobot":
            lerobot.write(self.policy, self.to)
            write_bytes(self.to / CARD, self._card("lerobot").encode())
        else:
            self._compile(PROGRAMS[self.format])
        log.info("%s", self.to)
        if self.repo is not None:
            log.info("uploaded: %s", upload(self.to, self.repo))

    def _card(self, library: str) -> str:
        tested = [Path(path) for path in self.evaluations]
        return model_card.card(self.state, self._own_config(), self.path.parent.parent, tested, library)

    def _compile(self, program: ModuleType) -> None:
        actor, file = Actor(self.policy).eval(), self.to / program.FILE
        n_steps = self.policy_config["scheduler"]["num_inference_steps"]
        log.info("compiling %d evaluations of the network, which takes minutes", n_steps)
        self.to.mkdir(parents=True, exist_ok=True)
        program.write(actor, file)
        inputs = zip(["noise", *actor.names], actor.example(), strict=True)
        log.info("inputs: %s", ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs))
        if not self.measure:
            return
        compiled = program.load(file)
        difference = largest_difference(actor, compiled)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{file} differs from the policy by {difference:.2g} (normalised actions), expected {TOLERANCE}"
            )
        own, theirs = latencies_ms(actor, self._act, compiled)
        log.info(
            "largest difference from the policy %.2g (normalised actions); one observation, %d threads: "
            "%s %.1f ms, the policy itself %.1f ms",
            difference, torch.get_num_threads(), self.format, theirs, own,
        )  # fmt: skip

    def _act(self, noise: Tensor, *obs: Tensor) -> Tensor:
        names = [name for name in self.policy.normalizer.specs if name != "action"]
        return self.policy.act(dict(zip(names, obs, strict=True)))


def largest_difference(actor: Actor, compiled: Callable[..., Tensor]) -> float:
    """The largest difference of normalised actions on five observations."""
    scale = actor.policy.normalizer.get_buffer("action_scale")
    inputs = [actor.example(seed=seed) for seed in range(5)]
    return max(float(((compiled(*x) - actor.reference(*x)) * scale).abs().max()) for x in inputs)


@torch.no_grad()
def latencies_ms(actor: Actor, *acts: Callable[..., Tensor]) -> list[float]:
    """Median time of one call of each for one observation, after three to warm up. They take turns, so that whatever
    else the machine does slows all of them."""
    times: list[list[float]] = [[] for _ in acts]
    for seed in range(3 + REPEATS):
        inputs = actor.example(seed=seed)
        for act, own in zip(acts, times, strict=True):
            start = time.perf_counter()
            act(*inputs)
            own.append(time.perf_counter() - start)
    return [1000 * statistics.median(own[3:]) for own in times]

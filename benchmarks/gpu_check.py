"""What only a real GPU can show: `scripts/gpu_check`. Each part writes its figures to one JSON file as it ends."""

import argparse
import copy
import ctypes
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

from benchmarks import machine, ours
from benchmarks.networks import DENOISERS, NETWORKS
from dp import devices, engines
from dp.ema import EMA
from dp.objectives import Distillation
from dp.policy import DiffusionPolicy
from workspaces import build

FLOORS_MS = {"image_full": 1.8, "image_small": 0.25}
"""Counted floors of a training step on an H200, ms: what must move through memory, at 4.3 TB/s."""

TINY = {"encoder": "state", "channels": [16], "kernel": 3, "norm": "layer", "batch": 8}
"""A network that compiles in a minute or two on one core, for simulated devices."""

CONFIGS = Path(__file__).parent.parent / "configs"

ENGINES = ("eager", "graph without a compiler", "compile", "graph")
QUICK = ("logger.mode=disabled", "env_runner.n_videos=0")
FALLBACKS = ("workspace.engine", "denoising runs without")
"""How the warnings begin that say a slower engine took over. Here they are errors."""

Figures = dict[str, Any]


class Training:
    """A policy in training: `__call__(n)` makes n whole steps."""

    def __init__(self, network: dict[str, Any], engine: str, bf16: bool, noise_draws: int = 4) -> None:
        self.policy = ours.make_policy(network, noise_draws).train()
        self.ema = EMA(self.policy)
        optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-4, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 1000))
        loader = ours.make_loader(network, "bundled")
        eager = engines.EagerStep(self.policy, optimizer, loader.load, 1.0, bf16)
        if engine == "graph without a compiler":
            step: engines.Step = engines.GraphStep(eager)
        else:
            step = engines.training_step(engine, eager)  # type: ignore[arg-type]
        self.step, self.batches = step, iter(loader)
        torch.manual_seed(1)

    def __call__(self, n: int) -> torch.Tensor:
        results = []
        for _ in range(n):
            results.append(self.step([next(self.batches)]))
            self.schedule.step()
            self.ema.update(self.policy)
        return torch.stack(results)


class Check:
    """The parts. Each returns its figures, with a verdict in "ok".

    simulated: nothing is computed, so numbers prove nothing and "ok" of those that need them is None.
    tiny: the smallest network instead of those whose speed is of interest.
    """

    def __init__(self, into: Path, simulated: bool, compiles: bool, tiny: bool) -> None:
        self.into, self.simulated, self.tiny = into, simulated, tiny
        self.network = TINY if tiny else NETWORKS["image_small"]
        self.cuda = ours.DEVICE.type == "cuda"
        self.proves = self.cuda and not simulated
        if simulated:
            torch.backends.cuda.enable_cudnn_sdp(False)  # it asks the device for a plan
        self.engines = ENGINES[: (4 if compiles else 2) if self.cuda else 1]
        self.environment = os.environ | ({} if compiles else {"TORCHDYNAMO_DISABLE": "1"})  # graph: of the eager step

    def machine(self) -> Figures:
        fault = devices.this_machine().fault() if self.cuda else None
        return {"ok": fault is None, "fault": fault, "machine": machine.describe(torch.get_num_threads())}

    def failed_capture(self) -> Figures:
        """After a capture that fails, random numbers and the next capture work."""
        if not self.cuda:
            return {"ok": None}
        stream = torch.cuda.Stream()
        try:
            engines.capture(stream, lambda: torch.randn(3, device=ours.DEVICE).sum().item())  # type: ignore[arg-type]
        except Exception as error:
            raised = type(error).__name__
        torch.randn(3, device=ours.DEVICE).sum().item()
        graph, _ = engines.capture(stream, lambda: torch.randn(3, device=ours.DEVICE))
        graph.replay()
        return {"ok": True, "raised": raised}

    def waits(self) -> Figures:
        """No host wait in a training step, its schedule and its EMA, nor in a denoising loop."""
        figures: Figures = {"ok": True}
        for engine in self.engines:
            training = Training(self.network, engine, bf16=True)
            training(engines.WARM_UP + 2)
            figures[f"train, {engine}"] = self._counted(lambda training=training: training(1))
        for scheduler, steps in (("ddim", 16), ("ddpm", 100)):
            for engine in ("eager", "graph") if self.cuda else ("eager",):
                policy, cond = self._sampler(scheduler, steps, engine, 56)
                policy.sample(cond)
                figures[f"denoise {scheduler}-{steps}, {engine}"] = self._counted(
                    lambda policy=policy, cond=cond: policy.sample(cond)
                )
        return figures

    def combinations(self) -> Figures:
        """No host wait with any objective and any denoiser: a step as a graph, and a denoising loop of two."""
        figures: Figures = {"ok": True}
        objectives = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))
        for objective, denoiser in itertools.product(objectives, DENOISERS):
            chosen = (f"objective={objective}", f"denoiser={denoiser}", *DENOISERS[denoiser])
            policy, batch = _policy_and_batch("+experiment=pusht_state_small", *chosen)
            if isinstance(policy.objective, Distillation):
                policy.objective.teach_with(policy.objective.reads, copy.deepcopy(policy.denoiser))
            optimizer = torch.optim.AdamW(policy.parameters(), 1e-3, fused=True)
            step: engines.Step = engines.EagerStep(policy, optimizer, lambda given: given, 1.0, bf16=True)
            if self.cuda:
                step = engines.GraphStep(step)  # type: ignore[arg-type]
            for _ in range(engines.WARM_UP + 2):
                step([batch])
            figures[f"train, {objective}, {denoiser}"] = self._counted(lambda step=step, batch=batch: step([batch]))
            policy.eval().requires_grad_(False)
            engines.speed_up_sampling("auto", policy)
            cond = policy.condition(batch["obs"])
            policy.sample(cond)
            figures[f"denoise, {objective}, {denoiser}"] = self._counted(
                lambda policy=policy, cond=cond: policy.sample(cond)
            )
        return figures

    def training_agrees(self) -> Figures:
        """Every engine's losses and gradient norms over 12 steps are those of eager, in float32 and bfloat16."""
        figures: Figures = {"ok": True if self.proves else None}
        for bf16, tolerance in ((False, 2e-3), (True, 3e-2)):
            reference = Training(self.network, "eager", bf16)(12).cpu()
            for engine in self.engines[1:]:
                results = Training(self.network, engine, bf16)(12).cpu()
                worst = ((results - reference).abs() / (reference.abs() + 1e-3)).max().item()
                figures[f"{engine}, {'bf16' if bf16 else 'fp32'}"] = worst
                if self.proves:
                    figures["ok"] &= worst < tolerance
        return figures

    def denoising_agrees(self) -> Figures:
        """Graphs of the denoiser sample what the loop samples, for every batch that one graph serves."""
        figures: Figures = {"ok": True if self.proves else None}
        for scheduler, steps in (("ddim", 16), ("ddpm", 100)) if self.cuda else ():
            fast, _ = self._sampler(scheduler, steps, "graph", 1)
            slow, _ = self._sampler(scheduler, steps, "eager", 1)
            for batch in (56, 24, 1):
                cond = torch.randn(batch, 2, slow.encoder.out_dim, device=ours.DEVICE)
                results = [
                    p.sample(cond, [torch.Generator(ours.DEVICE).manual_seed(i) for i in range(batch)])
                    for p in (slow, fast)
                ]
                worst = (results[0] - results[1]).abs().max().item()
                figures[f"{scheduler}-{steps}, B={batch}"] = worst
                if self.proves:
                    figures["ok"] &= worst < 5e-3
        return figures

    def speed(self) -> Figures:
        """Milliseconds per training step of each engine, the first ones apart, next to the floors, and per sample."""
        figures: Figures = {"ok": None}
        n = 200 if self.proves else 3
        for name in ("image_small", "image_full") if self.cuda and not self.tiny else ("image_small",):
            network = self.network if name == "image_small" else NETWORKS[name]
            figures[f"{name}, floor"] = FLOORS_MS[name]
            for engine in dict.fromkeys((self.engines[0], self.engines[-1])):
                begin = time.perf_counter()
                training = Training(network, engine, bf16=self.cuda)
                training(engines.WARM_UP + 1)
                ours.synchronize()
                figures[f"{name}, {engine}, first steps, s"] = time.perf_counter() - begin
                figures[f"{name}, {engine}, ms a step"] = _milliseconds(lambda t=training: t(n)) / n
        for batch in (1, 50):
            for steps in (10, 16) if self.proves else (16,):
                work = ours.denoise(self.network, "ddim", steps, batch)
                figures[f"denoise ddim-{steps}, B={batch}, ms"] = _milliseconds(work)
        return figures

    def training(self) -> Figures:
        """A short training ends with a score that the same steps reach on a CPU (0.85 after 2,000)."""
        shutil.rmtree(self.into / "whole", ignore_errors=True)
        begin = time.perf_counter()
        score = self._whole()
        return {"ok": score > 0.7 if self.proves else None, "score": score, "s": time.perf_counter() - begin}

    def evaluate(self) -> Figures:
        """Evaluating what was trained repeats the training's last rollouts."""
        score = self._whole()
        shutil.rmtree(self.into / "evaluated", ignore_errors=True)
        found = f"checkpoint={self.into / 'whole/checkpoints/last.pt'}"
        self._run("evaluated", *self._rollouts, found, "workspace=evaluate", "env_runner.n_train_episodes=0")
        again = json.loads((self.into / "evaluated/evaluation.json").read_text())["score"]
        return {"ok": abs(again - score) < 0.05 if self.proves else None, "score": again, "in training": score}

    def resume(self) -> Figures:
        """A run that is stopped and resumed ends with the weights of one that is not.

        Both are short: sums are rounded in no fixed order on a GPU, and training amplifies the differences (after 2,000
        steps weights differ by 0.1, losses by 0.3 %).
        """
        names = ("straight", "stopped")
        last = {name: self.into / name / "checkpoints/last.pt" for name in names}
        for name in names:
            shutil.rmtree(self.into / name, ignore_errors=True)
        short = (*self._train, "workspace.num_steps=60", "env_runner.n_episodes=2", "env_runner.max_steps=16")
        self._run("straight", *short)
        with subprocess.Popen(self._command("stopped", *short), env=self.environment) as process:
            while process.poll() is None and not last["stopped"].is_file():  # written after the first step
                time.sleep(0.02)
            process.terminate()
        stopped_at = _load(last["stopped"])["step"]
        self._run("stopped", *short)
        states = [_load(file) for file in last.values()]
        straight, stopped = (state["ema"]["model"] for state in states)
        worst = max((straight[name] - stopped[name]).abs().max().item() for name in straight)
        done = stopped_at < states[0]["step"] == states[1]["step"]
        ok = done and (None if self.simulated else worst < 1e-3)
        return {"ok": ok, "stopped_at": stopped_at, "of": states[1]["step"], "difference": worst}

    def distil(self) -> Figures:
        """A training that begins from a policy, and learns from it, ends."""
        shutil.rmtree(self.into / "student", ignore_errors=True)
        taught = ("objective=distillation", "init_from=bundled/pusht_state_small", "workspace.num_steps=20")
        few = ("env_runner.n_episodes=1", "env_runner.max_steps=16", "scheduler.num_inference_steps=1")
        self._run("student", "+experiment=pusht_state_small", "dataset.source=bundled", *taught, *few)
        return {"ok": _load(self.into / "student/checkpoints/last.pt")["step"] == 20}

    def sweep(self) -> Figures:
        """Two jobs of one process train on their own engines, while DataLoaders pin memory."""
        shutil.rmtree(self.into / "sweep", ignore_errors=True)
        loader = ("workspace.loader=dataloader", "workspace.num_steps=8", "env_runner.n_episodes=1")
        command = self._command("", *self._train, *loader, "seed=1,2", f"hydra.sweep.dir={self.into / 'sweep'}")
        subprocess.run([*command, "-m"], env=self.environment, check=True)
        steps = [_load(file)["step"] for file in self.into.glob("sweep/*/checkpoints/last.pt")]
        return {"ok": steps == [8, 8], "steps": steps}

    def _whole(self) -> float:
        """Trains, unless that has been done. Returns the score of the last rollouts."""
        run = self.into / "whole/run.json"
        if not run.is_file() or json.loads(run.read_text())["state"] != "finished":
            self._run("whole", *self._train)
        rows = [json.loads(line) for line in (self.into / "whole/metrics.jsonl").read_text().splitlines()]
        return next(row["rollout/score"] for row in reversed(rows) if "rollout/score" in row)

    def _sampler(self, scheduler: str, steps: int, engine: str, batch: int) -> tuple[Any, torch.Tensor]:
        policy = ours.make_policy(self.network, scheduler=scheduler, steps=steps).eval().requires_grad_(False)
        engines.speed_up_sampling(engine, policy)
        return policy, torch.randn(batch, 2, policy.encoder.out_dim, device=ours.DEVICE)

    def _counted(self, work: Callable[[], object]) -> Figures:
        """Runs `work` where waiting for the device is an error. On the simulated device, what it launched."""
        if not self.cuda:
            work()
            return {}
        loaded = ctypes.CDLL(None)
        simulator = loaded if hasattr(loaded, "fake_reset") else None
        torch.cuda.set_sync_debug_mode("error")
        try:
            if simulator is not None:
                simulator.fake_reset()
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        if simulator is None:
            return {"waits": 0}
        report = self.into / "counts.txt"
        simulator.fake_report(str(report).encode())
        rows = {name: int(n) for n, name in (line.split("\t", 1) for line in report.read_text().splitlines())}
        launches = rows.get("launched", 0) + rows.get("graph launches", 0)
        return {"waits": sum(n for name, n in rows.items() if name.startswith("SYNC")), "launches": launches}

    @property
    def _train(self) -> tuple[str, ...]:
        tiny = ("denoiser.channels=[16]", "denoiser.step_embed_dim=16", "workspace.batch_size=8") if self.tiny else ()
        steps = f"workspace.num_steps={2000 if self.proves else 30}"
        return "+experiment=pusht_state_small", "dataset.source=bundled", *self._rollouts, *tiny, steps

    @property
    def _rollouts(self) -> tuple[str, ...]:
        return () if self.proves else ("env_runner.n_episodes=2", "env_runner.max_steps=16")

    def _run(self, name: str, *overrides: str) -> None:
        subprocess.run(self._command(name, *overrides), env=self.environment, check=True)

    def _command(self, name: str, *overrides: str) -> list[str]:
        strict = [part for message in FALLBACKS for part in ("-W", f"error:{message}")]
        where = [f"run_dir={self.into / name}"] if name else []
        return [sys.executable, *strict, "run.py", *overrides, f"device={ours.DEVICE.type}", *QUICK, *where]


def _policy_and_batch(*overrides: str) -> tuple[DiffusionPolicy, dict[str, Any]]:
    """A policy for states in training, on the device, and random inputs of a batch of 8."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = build.resolve(build.settings(compose("config", list(overrides))))
    policy = build.policy(config).to(ours.DEVICE).train()
    obs, action = build.shape_meta(config)
    shapes = {name: (config["n_obs_steps"], *spec.shape) for name, spec in obs.items()}
    seen = {name: torch.rand(8, *shape, device=ours.DEVICE) for name, shape in shapes.items()}
    return policy, {"obs": seen, "action": torch.rand(8, config["horizon"], *action.shape, device=ours.DEVICE)}


def _load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True, map_location="cpu")


def _milliseconds(work: Callable[[], object]) -> float:
    work()
    begin = time.perf_counter()
    work()
    ours.synchronize()
    return 1000 * (time.perf_counter() - begin)


def computes() -> bool:
    """Whether the device computes: a simulated one answers zero."""
    return torch.ones(8, device=ours.DEVICE).sum().item() == 8


PARTS = (
    *("machine", "failed_capture", "waits", "combinations", "training_agrees", "denoising_agrees", "speed"),
    *("training", "evaluate", "resume", "distil", "sweep"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--simulated", action="store_true", help="numbers prove nothing: no verdicts that need them")
    parser.add_argument("--no-compile", action="store_true", help="only the engines that need no compiler")
    parser.add_argument("--tiny", action="store_true", help="one tiny network, which compiles quickly")
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []), help="all, unless some are named")
    args = parser.parse_args()
    if ours.DEVICE.type != args.device:
        sys.exit(f"--device {args.device}: {devices.this_machine().fault()}")
    check = Check(args.into, args.simulated or not computes(), not args.no_compile, args.tiny)
    args.into.mkdir(parents=True, exist_ok=True)
    file = args.into / "gpu_check.json"
    results = json.loads(file.read_text()) if file.is_file() else {"simulated": check.simulated}
    for message in FALLBACKS:
        warnings.filterwarnings("error", message=message)
    for part in args.parts or PARTS:
        if results.get(part, {}).get("ok") is not False and part in results:
            continue
        begin = time.perf_counter()
        try:
            figures = getattr(check, part)()
        except Exception as error:
            figures = {"ok": False, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
        results[part] = {**figures, "took_s": round(time.perf_counter() - begin, 1)}
        file.write_text(json.dumps(results, indent=1))
        print(f"{part}: {results[part]}", flush=True)
    print("\n" + paragraph(results))
    sys.exit(any(results[part]["ok"] is False for part in results if part in PARTS))


def paragraph(results: Figures) -> str:
    """For docs/results.md."""
    failed = [part for part in PARTS if results.get(part, {}).get("ok") is False]
    speed = {name: value for name, value in results.get("speed", {}).items() if "ms" in name or "floor" in name}
    shown = "; ".join(f"{name} {value:.2f}" for name, value in speed.items())
    kind = "Simulated, without numbers or times" if results["simulated"] else "Measured"
    score = results.get("training", {}).get("score")
    return (
        f"{kind} with scripts/gpu_check on {time.strftime('%Y-%m-%d')}: {results.get('machine', {}).get('machine')}. "
        f"Failed: {', '.join(failed) or 'nothing'}. Score of the short training: {score}. {shown}."
    )


if __name__ == "__main__":
    main()

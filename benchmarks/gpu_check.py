"""What only a real GPU can show: `scripts/gpu_check`. Each part writes its figures to one JSON file as it ends."""

import argparse
import ctypes
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, ours
from benchmarks.networks import NETWORKS
from dp import devices, engines
from dp.ema import EMA

FLOORS_MS = {"image_full": 1.8, "image_small": 0.25}
"""Counted floors of a training step on an H200, ms: what must move through memory, at 4.3 TB/s."""

ENGINES = ("eager", "graph without a compiler", "compile", "graph")
QUICK = ("logger.mode=disabled", "env_runner.n_videos=0", "dataset.source=bundled")
Figures = dict[str, Any]


class Training:
    """A policy in training: `__call__(n)` makes n whole steps."""

    def __init__(self, network: str, engine: str, bf16: bool, noise_draws: int = 1) -> None:
        self.policy = ours.make_policy(NETWORKS[network], noise_draws).train()
        self.ema = EMA(self.policy)
        optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-4, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 1000))
        loader = ours.make_loader(NETWORKS[network], "bundled")
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
    """

    def __init__(self, into: Path, simulated: bool, compiles: bool) -> None:
        self.into, self.simulated = into, simulated
        self.cuda = ours.DEVICE.type == "cuda"
        self.proves = self.cuda and not simulated
        self.engines = ENGINES[: (4 if compiles else 2) if self.cuda else 1]

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
            training = Training("image_small", engine, bf16=True)
            training(engines.WARM_UP + 2)
            figures[f"train, {engine}"] = self._counted(lambda training=training: training(1))
        for scheduler, steps in (("ddim", 16), ("ddpm", 100)):
            for engine in ("eager", "graph") if self.cuda else ("eager",):
                policy, cond = self._sampler("image_small", scheduler, steps, engine, 56)
                policy.sample(cond)
                figures[f"denoise {scheduler}-{steps}, {engine}"] = self._counted(
                    lambda policy=policy, cond=cond: policy.sample(cond)
                )
        return figures

    def training_agrees(self) -> Figures:
        """Every engine's losses and gradient norms over 12 steps are those of eager, in float32 and bfloat16."""
        figures: Figures = {"ok": True if self.proves else None}
        for bf16, tolerance in ((False, 2e-3), (True, 3e-2)):
            reference = Training("image_small", "eager", bf16)(12).cpu()
            for engine in self.engines[1:]:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", message="workspace.engine")
                    results = Training("image_small", engine, bf16)(12).cpu()
                worst = ((results - reference).abs() / (reference.abs() + 1e-3)).max().item()
                figures[f"{engine}, {'bf16' if bf16 else 'fp32'}"] = worst
                if self.proves:
                    figures["ok"] &= worst < tolerance
        return figures

    def denoising_agrees(self) -> Figures:
        """Graphs of the denoiser sample what the loop samples, for every batch that one graph serves."""
        figures: Figures = {"ok": True if self.proves else None}
        for scheduler, steps in (("ddim", 16), ("ddpm", 100)) if self.cuda else ():
            fast, _ = self._sampler("image_small", scheduler, steps, "graph", 1)
            slow, _ = self._sampler("image_small", scheduler, steps, "eager", 1)
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
        """Milliseconds a training step of each engine, the first ones apart, and a checkpoint, next to the floors."""
        figures: Figures = {"ok": None}
        for network, noise_draws in (("image_small", 4), ("image_full", 4)) if self.cuda else (("image_small", 4),):
            figures[f"{network}, floor"] = FLOORS_MS[network]
            for engine in (self.engines[0], self.engines[-1]):
                training, begin = (
                    Training(network, engine, bf16=self.cuda, noise_draws=noise_draws),
                    time.perf_counter(),
                )
                training(engines.WARM_UP + 1)
                ours.synchronize()
                figures[f"{network}, {engine}, first steps, s"] = time.perf_counter() - begin
                n = 200 if self.proves else 3
                figures[f"{network}, {engine}, ms a step"] = _milliseconds(lambda t=training, n=n: t(n)) / n
        for batch in (1, 50):
            for steps in (10, 16) if self.proves else (16,):
                work = ours.denoise(NETWORKS["image_small"], "ddim", steps, batch)
                figures[f"denoise ddim-{steps}, B={batch}, ms"] = _milliseconds(work)
        return figures

    def resume(self) -> Figures:
        """A run that is stopped and resumed ends with the weights of one that is not."""
        length = 2000 if self.proves else 30
        options = (f"workspace.num_steps={length}", "env_runner.n_episodes=1", "env_runner.max_steps=16")
        last = {name: self.into / name / "checkpoints/last.pt" for name in ("whole", "stopped")}
        self._run("whole", *options)
        with subprocess.Popen(self._command("stopped", *options)) as process:
            while process.poll() is None and not last["stopped"].is_file():  # written after the first step
                time.sleep(0.02)
            process.terminate()
        stopped_at = _load(last["stopped"])["step"]
        self._run("stopped", *options)
        whole, stopped = (_load(file)["ema"]["model"] for file in last.values())
        worst = max((whole[name] - stopped[name]).abs().max().item() for name in whole)
        ok = None if self.simulated else worst < 1e-2 and stopped_at < length
        return {"ok": ok, "stopped_at": stopped_at, "of": length, "difference": worst}

    def training(self) -> Figures:
        """A short training ends with a score that the same steps reach on a CPU (0.85 after 2,000)."""
        length = 2000 if self.proves else 6
        begin = time.perf_counter()
        self._run("short", f"workspace.num_steps={length}", f"env_runner.n_episodes={8 if length == 6 else 50}")
        rows = [json.loads(line) for line in (self.into / "short/metrics.jsonl").read_text().splitlines()]
        score = next(row["rollout/score"] for row in reversed(rows) if "rollout/score" in row)
        return {"ok": score > 0.7 if length > 6 else None, "score": score, "s": time.perf_counter() - begin}

    def _sampler(self, network: str, scheduler: str, steps: int, engine: str, batch: int) -> tuple[Any, torch.Tensor]:
        policy = ours.make_policy(NETWORKS[network], scheduler=scheduler, steps=steps).eval().requires_grad_(False)
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

    def _run(self, name: str, *overrides: str) -> None:
        subprocess.run(self._command(name, *overrides), check=True)

    def _command(self, name: str, *overrides: str) -> list[str]:
        run = [sys.executable, "run.py", "+experiment=pusht_state_small", f"device={ours.DEVICE.type}", *QUICK]
        engine = [] if self.engines[-1] in ("eager", "graph") else ["workspace.engine=eager"]
        return [*run, *engine, f"run_dir={self.into / name}", *overrides]


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


PARTS = ("machine", "failed_capture", "waits", "training_agrees", "denoising_agrees", "speed", "resume", "training")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--simulated", action="store_true", help="numbers prove nothing: no verdicts that need them")
    parser.add_argument("--no-compile", action="store_true", help="only the engines that need no compiler")
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []), help="all, unless some are named")
    args = parser.parse_args()
    if ours.DEVICE.type != args.device:
        sys.exit(f"--device {args.device}: {devices.this_machine().fault()}")
    check = Check(args.into, args.simulated or not computes(), not args.no_compile)
    args.into.mkdir(parents=True, exist_ok=True)
    file = args.into / "gpu_check.json"
    results = json.loads(file.read_text()) if file.is_file() else {"simulated": check.simulated}
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

"""`python -m benchmarks [SECTION ...]`: every figure is a median, taken in turns with its rivals, next to its floor.

Sections: startup loader train ema denoise rollout checkpoint. Prints Markdown; `--into FILE` also puts it between the
two marks in FILE.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from benchmarks.machine import Ceilings, describe
from benchmarks.networks import NETWORKS
from benchmarks.turns import REPOSITORY, Timing, race
from dp.processes import N_CORES
from workspaces.startup import LAUNCH

LEROBOT = REPOSITORY / ".venv-lerobot/bin/python"
ON_GPU = torch.cuda.is_available()
MARKS = ("<!-- measured: begin -->", "<!-- measured: end -->")


def ours(task: str, **settings: object) -> list[str]:
    given = [f"{name}={value}" for name, value in LAUNCH.items()]
    return ["env", *given, sys.executable, "-m", "benchmarks.ours", task, json.dumps(settings)]


def plain(task: str, **settings: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.rivals.plain", task, json.dumps(settings)]


def lerobot(task: str, **settings: object) -> list[str]:
    python = str(LEROBOT) if LEROBOT.exists() else sys.executable
    return [python, "-m", "benchmarks.rivals.lerobot_policy", task, json.dumps(settings)]


def vector_envs(**settings: object) -> list[str]:
    return [sys.executable, "-m", "benchmarks.rivals.vector_envs", json.dumps(settings)]


class Report:
    """Collects tables, printing each row as it is known."""

    def __init__(self, threads: int) -> None:
        self.threads, self.lines = threads, []

    def write(self, line: str = "") -> None:
        self.lines.append(line)
        print(line, flush=True)

    def table(self, title: str, unit: str) -> None:
        self.write(f"\n### {title}\n")
        self.write(f"| what | who | {unit} | range | ours is | floor | peak memory, MiB |")
        self.write("|---|---|---|---|---|---|---|")

    def rows(
        self,
        what: str,
        commands: dict[str, list[str]],
        rounds: int,
        scale: float,
        floor: float | None,
        threads: int = 0,
    ) -> dict[str, Timing]:
        """`scale`: what seconds of a call are multiplied with. The first command is ours."""
        environment = {"OMP_NUM_THREADS": str(threads or self.threads)}
        timings, absent = race(commands, rounds, environment)
        first = next(iter(timings.values()))
        for name, t in timings.items():
            ratio = "" if t is first else f"{t.median / first.median:.2f} ×"
            shown = f"{floor * scale:.3g}" if floor is not None and t is first else ""
            spread = f"{t.low * scale:.4g}–{t.high * scale:.4g}"
            self.write(
                f"| {what} | {name} | {t.median * scale:.4g} | {spread} | {ratio} | {shown} | {t.peak_mib:.0f} |"
            )
        for reason in absent:
            self.write(f"| {what} | not raced: {reason} | | | | | |")
        return timings


def startup(report: Report, ceilings: Ceilings) -> None:
    report.write("\n### Start-up: from the command to the first training step, warm cache\n")
    report.write("| command | s | range |\n|---|---|---|")
    for experiment in ("pusht_image", "pusht_image_small", "pusht_state_small"):
        taken = sorted(_first_step_s(experiment) for _ in range(4))[:-1]  # the slowest warmed the caches
        report.write(f"| python run.py +experiment={experiment} | {taken[1]:.1f} | {taken[0]:.1f}–{taken[2]:.1f} |")


def _first_step_s(experiment: str) -> float:
    folder = tempfile.mkdtemp()
    command = [sys.executable, str(REPOSITORY / "run.py"), f"+experiment={experiment}", f"run_dir={folder}/run"]
    start = time.perf_counter()
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "WANDB_MODE": "offline"}
    ) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("training begins"):
                seconds = time.perf_counter() - start
                run.send_signal(signal.SIGKILL)
                break
        else:
            raise RuntimeError(f"{' '.join(command)} ended before it trained")
    shutil.rmtree(folder)
    return seconds


def loader(report: Report, ceilings: Ceilings) -> None:
    report.table("Loader alone: batches of 64 windows with images", "ms a batch")
    network, calls = NETWORKS["image_middle"], 10
    commands = {
        "dp, resident": ours("load", network=network, calls=calls),
        "plain, DataLoader with 2 workers": plain("load", network=network, calls=calls, n_workers=2),
    }
    report.rows("64 windows", commands, 5, 1000 / calls, None)


def train(report: Report, ceilings: Ceilings) -> None:
    report.table("Training step: batch to updated EMA", "ms a step")
    on_cpu = {"state_small": [1], "image_small": [1, 4], "image_middle": [1, 4, 8], "image_full": [1]}
    on_gpu = {"image_middle": [1], "image_full": [1, 4], "image_paper": [1]}  # compiling takes a minute each
    for name, draws in (on_gpu if ON_GPU else on_cpu).items():
        network = NETWORKS[name]
        calls = 20 if ON_GPU else 1
        rounds = 3 if name == "image_full" and not ON_GPU else 5
        commands = {f"dp, K={k}": ours("train", network=network, noise_draws=k, calls=calls) for k in draws}
        commands["plain PyTorch"] = plain("train", network=network, calls=calls, n_workers=2)
        if name in ("image_middle", "image_full", "image_paper"):  # LeRobot has neither the CNN nor LayerNorm
            commands["LeRobot"] = lerobot("train", network=network, calls=calls)
        timings = report.rows(name, commands, rounds, 1000 / calls, ceilings.train_s(network, draws[0]))
        for k in draws if "LeRobot" in timings else []:
            pairs = k * timings["LeRobot"].median / timings[f"dp, K={k}"].median
            report.write(f"| {name} | (observation, noise) pairs a second, K={k} / LeRobot | | | {pairs:.2f} × | | |")


def ema(report: Report, ceilings: Ceilings) -> None:
    report.table("EMA update, 76 M parameters", "ms an update")
    network, calls = NETWORKS["image_full"], 5
    commands = {
        "dp, one foreach lerp": ours("ema", network=network, calls=calls),
        "plain, a Python loop": plain("ema", network=network, calls=calls),
    }
    floor = 12 * 76e6 / ceilings.bytes_per_s
    report.rows("76 M", commands, 5, 1000 / calls, floor)


def denoise(report: Report, ceilings: Ceilings) -> None:
    report.table("Denoising, UNet [256, 512, 1024]", "ms a batch")
    network = NETWORKS["image_full"]
    for scheduler, steps, batch in (("ddim", 16, 1), ("ddim", 16, 50), ("ddpm", 100, 1), ("ddpm", 100, 50)):
        if steps * batch > 1000 and not ON_GPU:
            continue
        settings = {"network": network, "scheduler": scheduler, "steps": steps, "batch": batch}
        commands = {
            "dp": ours("denoise", **settings),
            "plain PyTorch": plain("denoise", **settings),
            "LeRobot": lerobot("denoise", **settings),
        }
        report.rows(
            f"{scheduler.upper()}-{steps}, B={batch}", commands, 3, 1000, ceilings.denoise_s(network, steps, batch)
        )


def rollout(report: Report, ceilings: Ceilings) -> None:
    workers = N_CORES
    settings = {"n_episodes": 50, "max_steps": 100}
    report.table("50 episodes of 100 steps with images", "s")
    commands = {
        f"dp, {workers} workers": ours("rollout", **settings, n_workers=workers),
        "dp, in one process": ours("rollout", **settings, n_workers=0),
        "gymnasium AsyncVectorEnv": vector_envs(vector="async", **settings),
        "gymnasium SyncVectorEnv": vector_envs(vector="sync", **settings),
    }
    report.rows("environments alone", commands, 3, 1, None, threads=1)
    name = "image_full" if ON_GPU else "image_small"
    with_policy = ours("rollout", **settings, n_workers=workers, network=NETWORKS[name])
    report.rows(f"with {name}, DDIM-16", {"dp": with_policy}, 3, 1, None)


def checkpoint(report: Report, ceilings: Ceilings) -> None:
    report.table("Checkpoint of 76 M parameters: weights, EMA, optimizer", "s")
    network = NETWORKS["image_full"]
    commands = {
        "dp, fsynced and renamed": ours("checkpoint", network=network, read=False),
    }
    report.rows("save", commands, 3, 1, 16 * 76e6 / ceilings.disk_bytes_per_s)
    report.rows("load", {"dp": ours("checkpoint", network=network, read=True)}, 3, 1, None)


SECTIONS: dict[str, Callable[[Report, Ceilings], None]] = {
    f.__name__: f for f in (startup, loader, train, ema, denoise, rollout, checkpoint)
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], default=[], metavar="SECTION")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ceilings = Ceilings.measure()
    report = Report(options.threads)
    report.write(f"Measured on {date.today()}: {describe(options.threads)}.")
    report.write(f"Ceilings: {ceilings}.")
    for name in options.sections or SECTIONS:
        SECTIONS[name](report, ceilings)
    if options.into is not None:
        before, begin, rest = options.into.read_text().partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        options.into.write_text(before + begin + "\n" + "\n".join(report.lines) + "\n" + end + after)


if __name__ == "__main__":
    main()

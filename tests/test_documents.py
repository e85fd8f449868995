"""Every command in the README and the tutorials runs, at small settings and in this process. Every link works.

A tutorial is run as a reader would follow it: its files are written, its scripts run, and its commands typed in order.
"""

import importlib.util
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jaxtyping
import pytest
from hydra.core.singleton import Singleton
from safetensors.torch import save_file

import workspaces.build  # noqa: F401  # so that `run.py` finds it imported, and leaves the garbage collector alone
from tests import lerobot_policies
from workspaces import startup

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
TUTORIALS = sorted((ROOT / "docs/tutorial").glob("*.md"))
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

ALWAYS = ["device=cpu", "n_threads=1", "logger.mode=disabled"]
ROLLOUTS = [
    "env_runner.n_episodes=2", "env_runner.max_steps=9", "env_runner.n_workers=0", "env_runner.n_train_episodes=0",
    "env_runner.n_videos=0", "env_runner.n_envs=2",
]  # fmt: skip
TRAINING = [
    "workspace.num_steps=2", "workspace.every={log: 1, validate: 2, rollout: 2, checkpoint: 2}", "workspace.n_best=1",
    "workspace.batch_size=4", "workspace.precision=fp32", "lr_schedule.num_warmup_steps=1", "dataset.val_ratio=0.2",
    "scheduler.num_train_timesteps=20",
]  # fmt: skip
NETWORK = ["denoiser.channels=[16,32]", "denoiser.step_embed_dim=16"]
COLLECTION = ["workspace.n_episodes=1", "workspace.n_workers=0", "workspace.filter.success_only=false"]
PLANNER = ["collector.n_samples=8", "collector.n_iterations=1", "collector.n_attempts=1"]
PRACTICE = ["workspace.n_episodes=2", "workspace.n_plans=2", "workspace.num_steps=5", "workspace.width=16"]
BY_POLICY = {"collector=checkpoint", "collector=takeover"}
ROUNDS = [
    "workspace.n_rounds=1", *(o for o in ROLLOUTS if "n_episodes" not in o), "lr_schedule.num_warmup_steps=1",
    *(f'workspace.{kind}="{shlex.join([*TRAINING, "env_runner.n_episodes=1"])}"' for kind in ("start", "train")),
    f'workspace.critic="{shlex.join(PRACTICE)}"',
    'workspace.evaluate="env_runner.n_episodes=2 env_runner.start_seed=200000"',
]  # fmt: skip
REPORT = ["report.n_films=0"]
TOKENS = ["denoiser.width=32", "denoiser.n_layers=1"]
NETWORKS = {"denoiser=plain": [], "denoiser=dit_small": TOKENS, "+sweep=denoisers": [f"++{key}" for key in TOKENS]}
"""What takes the place of `NETWORK` where other denoisers are chosen."""
SWEEPS = {
    "+sweep=horizon": ["horizon=8,10"],
    "+sweep=objectives": ["objective=flow,mip", "scheduler.num_inference_steps=1,2", "seed=0"],
    "+sweep=denoisers": ["denoiser=dit_small,mlp_small", "seed=0"],
    "+sweep=metaworld_mt10": ["task.name=reach-v3"],
}
"""Values that replace those of a sweep by name."""
REQUIRED = {"blockpush": "pybullet", "metaworld": "metaworld"}
"""Pages whose commands need an extra package."""
PYTHON = os.environ.get("DP_ROBOSUITE_PYTHON")
"""A Python that has robosuite. Without it, the commands of its page are only composed."""
COMPOSED = [
    "collector=mouse",
    "+experiment=metaworld_image_small",
    "+experiment=robosuite_image_small",
    "dataset.path=can.hdf5",
    "task=pusht_image",
    "format=onnx",
]
"""Commands with these arguments are only composed: they wait for a person, draw, need LeRobot, read others' data, or
take long."""


def commands(text: str) -> list[list[str]]:
    """The arguments of every `python run.py` in a document, in code blocks, tables and sentences."""
    lines = re.findall(r"python run\.py((?:[^`\n\\]|\\\n)*)", text)
    return [shlex.split(line.replace("\\\n", " "), comments=True) for line in lines]


def files(text: str) -> dict[str, str]:
    """Path -> content of every code block that begins with its path in a comment."""
    blocks = re.findall(r"^```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return dict(blocks)


def verb(arguments: list[str]) -> str:
    return next((a.partition("=")[2] for a in arguments if a.startswith("workspace=")), "train")


def small(arguments: list[str]) -> list[str]:
    """The same command in a second or two."""
    if "--help" in arguments or "--cfg" in arguments:
        return arguments
    added = ALWAYS + [value for argument in arguments for value in SWEEPS.get(argument, [])]
    if verb(arguments) in ("evaluate", "critic") or BY_POLICY & set(arguments):
        added += ROLLOUTS
    if verb(arguments) == "critic":
        added += PRACTICE
    if verb(arguments) == "improve":
        return [
            *(a for a in arguments if not a.startswith("workspace.collect=")),
            *added,
            *NETWORK,
            *ROUNDS,
            *_collect(arguments),
        ]
    if verb(arguments) == "collect":
        added += COLLECTION + (PLANNER if not any("collector=" in argument for argument in arguments) else [])
    if verb(arguments) == "report":
        added += REPORT
    if verb(arguments) == "train":
        added += _training(arguments)
    return [*_fewer(arguments), *added] if "-m" in arguments else [*arguments, *added]


def _collect(arguments: list[str]) -> list[str]:
    """A small collection of the kind that an improvement is told to make."""
    typed = [a.partition("=")[2].strip('"') for a in arguments if a.startswith("workspace.collect=")]
    return [f'workspace.collect="{" ".join([*(typed or ["collector=takeover"]), *COLLECTION])}"']


def _training(arguments: list[str]) -> list[str]:
    if not any(re.match(r"\+experiment=|task=", argument) for argument in arguments):  # a run that is resumed
        return ["workspace.num_steps=3"] if any("num_steps" in argument for argument in arguments) else []
    network = next((NETWORKS[argument] for argument in arguments if argument in NETWORKS), NETWORK)
    encoder = ["encoder=cnn"] if "+experiment=pusht_image" in arguments else []  # a ResNet's checkpoints are large
    unscheduled = r"objective=(?!distillation)|\+experiment=blockpush"  # objectives without a scheduler
    scheduled = not any(re.match(unscheduled, argument) for argument in arguments)
    training = [override for override in TRAINING if scheduled or not override.startswith("scheduler.")]
    scripted = any(
        "metaworld" in argument or "blockpush" in argument or "robosuite" in argument for argument in arguments
    )
    return [*ROLLOUTS, *training, *network, *encoder, *(["dataset.n_episodes=5"] if scripted else [])]


def _fewer(arguments: list[str]) -> list[str]:
    """Two values of the first key that is swept, and of those that need no training; one of the others."""
    swept = [a for a in arguments if re.fullmatch(r"[\w.]+=[\w.]+(,[\w.]+)+", a)]
    kept = {a: ",".join(a.split(",")[: 2 if a == swept[0] or "inference" in a else 1]) for a in swept}
    return [re.sub(r"n_trials=\d+", "n_trials=1", kept.get(a, a)) for a in arguments]


@pytest.fixture
def run_py(monkeypatch: pytest.MonkeyPatch, small_zarr: Path) -> Iterator[Callable[[list[str]], None]]:
    """`python run.py ARGUMENTS` in this process. Raises AssertionError where it exits with an error."""
    monkeypatch.setattr(startup, "tune", lambda: None)  # the tests' process keeps its allocator
    monkeypatch.setattr("workspaces.report.figures.pdf", lambda figure: b"")  # takes as long as all other files
    before, handlers, path = Singleton.get_state(), logging.getLogger().handlers[:], sys.path[:]

    def call(arguments: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "run.py"), *arguments])
        code = None
        try:
            runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        assert not code, shlex.join(arguments)

    jaxtyping.config.update("jaxtyping_disable", True)  # as users run it
    with mock.patch.dict(os.environ, {"DP_PUSHT_ZARR": str(small_zarr)}):
        yield call
    jaxtyping.config.update("jaxtyping_disable", False)
    Singleton.set_state(before)
    logging.getLogger().handlers[:], sys.path[:] = handlers, path
    logging.captureWarnings(False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what the fixtures make."""
    return tmp_path_factory.mktemp("documents")


@pytest.fixture
def placeholders(run_py: Callable[[list[str]], None], place: Path, small_zarr: Path) -> dict[str, str]:
    """What stands for PATH and DIR in a command: a small run of pusht_image, trained once."""
    if not (place / "run").exists():
        run_py(small(["+experiment=pusht_image", f"run_dir={place}/run"]))
        shutil.copytree(place / "run", place / "other")
    run = str(place / "run")
    pythons = {"$HOME/robosuite/bin/python": PYTHON} if PYTHON else {}
    return pythons | {
        "b=DIR": f"b={place}/other",
        "dataset.path=PATH": f"dataset.path={small_zarr}",
        "=PATH": f"={run}",
        "=DIR": f"={run}",
    }


def policies_of_others(folder: Path) -> None:
    """What docs/tutorial/checkpoints.md takes as given: policies of LeRobot and of the paper's code."""
    data = ROOT / "tests/data/lerobot"
    for name, case in (("diffusion_pusht", "image"), ("pusht_keypoints", "state")):
        shutil.copytree(data / case, folder / name)
    shapes = json.loads((data / "image/shapes.json").read_text())
    save_file(lerobot_policies.filled(shapes), folder / "diffusion_pusht/model.safetensors")
    shutil.copy(ROOT / "tests/data/reference/unet_lowdim.ckpt", folder / "epoch=0550-test_mean_score=0.969.ckpt")


PREPARED = {"checkpoints": policies_of_others}
"""What a reader of a page has before."""


@pytest.mark.parametrize("page", [README, *TUTORIALS], ids=lambda page: page.stem)
def test_a_reader_can_type_what_a_page_says(page, run_py, placeholders, tmp_path, monkeypatch):
    if importlib.util.find_spec(REQUIRED.get(page.stem, "dp")) is None:
        pytest.skip(f"pip install -e '.[{page.stem}]'")
    text = page.read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, content in files(text).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    PREPARED.get(page.stem, lambda folder: None)(tmp_path)
    try:
        for name in files(text):
            if "/" not in name:
                runpy.run_path(name)
        for arguments in commands(text):
            if any(argument in COMPOSED for argument in arguments) or (page.stem == "robosuite" and not PYTHON):
                arguments = [*arguments, "--cfg", "job"]
            for placeholder, value in placeholders.items():
                arguments = [argument.replace(placeholder, value) for argument in arguments]
            run_py(small(arguments))
    finally:
        for module in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
            del sys.modules[module]


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        if not target.startswith("http"):
            file = page.parent / target if target else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


def anchors(text: str) -> list[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]

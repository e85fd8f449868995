"""Every pair of objective, denoiser, encoder, precision and engine: two steps, the second resumed, and samples."""

import copy
import itertools
import re
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir

from benchmarks.networks import DENOISERS
from dp.engines import EagerStep, compiled
from dp.policy import DiffusionPolicy
from tests.cli import RUN, run_py
from tests.workspaces.conftest import assert_same_run
from workspaces import build, trust

CONFIGS = RUN.parent / "configs"

OBJECTIVES = sorted(file.stem for file in (CONFIGS / "objective").glob("*.yaml"))


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return build.resolve(build.settings(compose("config", list(overrides))))


def batch_for(policy: DiffusionPolicy, config: dict) -> dict:
    obs, action = build.shape_meta(config)
    n, generator = 6, torch.Generator().manual_seed(0)
    sizes = {name: (n, config["n_obs_steps"], *spec.shape) for name, spec in obs.items()}
    return {
        "obs": {name: torch.rand(size, generator=generator) for name, size in sizes.items()},
        "action": torch.rand((n, config["horizon"], *action.shape), generator=generator) * 2 - 1,
    }


def test_a_policy_is_distilled_and_resumes(run, tmp_path):
    taught = ("objective=distillation", "scheduler.num_inference_steps=1")
    alone = run(*taught, "run_dir=student")
    assert "this objective needs a teacher: init_from=PATH" in alone.stderr
    for objective in ("diffusion", "flow"):
        result = run(f"objective={objective}", f"run_dir={objective}", "workspace.num_steps=2")
        assert result.returncode == 0, result.stderr
    refused = run(*taught, "init_from=flow", "run_dir=student")
    assert "init_from=flow cannot teach: its objective is Flow, expected Diffusion" in refused.stderr
    refused = run(*taught, "scheduler.prediction_type=sample", "init_from=diffusion", "run_dir=student")
    assert "cannot teach: it predicts epsilon: set scheduler.prediction_type=epsilon" in refused.stderr
    for place in ("student", "again"):
        result = run(*taught, "init_from=diffusion", f"run_dir={place}", "workspace.num_steps=6")
        assert result.returncode == 0, result.stderr
        assert "WARNING" not in result.stderr
    more = [run_py(f"run_dir={place}", "workspace.num_steps=9", cwd=tmp_path) for place in ("student", "again")]
    assert [result.returncode for result in more] == [0, 0], more[0].stderr
    assert_same_run(tmp_path / "student", tmp_path / "again")
    state = torch.load(tmp_path / "student/checkpoints/last.pt", weights_only=True)
    assert not [name for name in state["policy"] if "teacher" in name]


def test_the_teacher_decides_what_a_student_learns():
    config = composed("+experiment=pusht_state_small", "objective=distillation", "denoiser.channels=[8]")
    policy = build.policy(config)
    batch = batch_for(policy, config)
    losses = []
    for scale in (None, 1.0, 2.0):
        if scale is not None:
            teacher = copy.deepcopy(policy.denoiser)
            with torch.no_grad():
                [weight.mul_(scale) for weight in teacher.parameters()]
            policy.objective.teach_with(policy.objective.reads, teacher)
        torch.manual_seed(0)
        losses.append(policy.loss(batch).item())
    assert len(set(losses)) == 3


def test_an_objective_without_a_choice_says_how_often_it_evaluates():
    for objective, evaluations in (("regression", 1), ("mip", 2), ("flow", 10)):
        config = composed("+experiment=pusht_state_small", f"objective={objective}")
        assert config["scheduler"]["num_inference_steps"] == evaluations


ENCODERS = {
    "state": ["+experiment=pusht_state_small"],
    "cnn": ["+experiment=pusht_image_small", "encoder.channels=[8,8,8,8]", "encoder.jitter=0.3", "encoder.erase=0.3"],
    "resnet18": ["+experiment=pusht_image_small", "encoder=resnet18", "encoder.crop=40"],
    "timm": ["+experiment=pusht_image_small", "encoder=timm", "encoder.model=test_vit", "encoder.crop=48"],
}


Choices = tuple[str, str, str, str, str]

COMPILES = """
import functools, sys, torch
from dp import kernels
from tests.workspaces import test_combinations as tests
whole = functools.partial(torch.compile, fullgraph=True, dynamic=False, backend="aot_eager")
torch.compile = lambda function, **_: whole(function)
with kernels.use("reference"):  # what GPUs run
    for row in tests.combinations():
        if row[-1] == "compile":
            tests.two_steps(*row)
            print(row)
"""
"""The graph of the loss is captured whole, with its gradient, and run by torch's own operators: a compiler takes a
minute for each. In a process without type checks, which cannot be captured."""


def combinations() -> list[Choices]:
    """Every objective with every denoiser; the other choices in turns, so that all pairs of two choices occur."""
    made = [
        (objective, denoiser, list(ENCODERS)[(i + j) % 4], ("fp32", "bf16")[(i + j // 2) % 2], "eager")
        for i, objective in enumerate(OBJECTIVES)
        for j, denoiser in enumerate(DENOISERS)
    ]
    # Large encoders take longest to capture: one row each.
    encoders = ("cnn", "state", "resnet18", "state", "timm", "state", "cnn", "state", "state")
    rows = zip(OBJECTIVES, itertools.cycle(DENOISERS), encoders, itertools.cycle(("fp32", "bf16")), strict=False)
    return made + [(*row, "compile") for row in rows]


def test_every_pair_of_choices_occurs():
    columns = [set(column) for column in zip(*combinations(), strict=True)]
    for i, j in itertools.combinations(range(5), 2):
        pairs = {(row[i], row[j]) for row in combinations()}
        assert pairs == set(itertools.product(columns[i], columns[j]))


@pytest.mark.parametrize("row", [row for row in combinations() if row[-1] == "eager"], ids="-".join)
def test_two_steps_resume_to_the_bit_and_sample(row):
    two_steps(*row)


def test_the_same_captured_as_one_graph():
    done = subprocess.run([sys.executable, "-c", COMPILES], cwd=RUN.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(OBJECTIVES)


def two_steps(objective: str, denoiser: str, encoder: str, precision: str, engine: str) -> None:
    chosen = [f"objective={objective}", f"denoiser={denoiser}", *DENOISERS[denoiser], "scheduler.num_inference_steps=2"]
    config = composed(*ENCODERS[encoder], *chosen, "noise_draws=2", "device=cpu")
    torch.manual_seed(0)
    policy = build.policy(config)
    if objective == "distillation":
        policy.objective.teach_with(policy.objective.reads, copy.deepcopy(policy.denoiser))
    batch, optimizer = batch_for(policy, config), torch.optim.AdamW(policy.parameters(), 1e-3)
    step = EagerStep(policy, optimizer, lambda given: given, 1.0, precision == "bf16")
    if engine == "compile":
        step = compiled(step)
    first = step([batch])
    assert first.isfinite().all()
    saved = copy.deepcopy((policy.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    second = step([batch])
    policy.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    assert torch.equal(step([batch]), second)
    with torch.no_grad():
        cond = policy.condition(batch["obs"])
    actions = policy.sample(cond, [torch.Generator().manual_seed(i) for i in range(6)])
    assert actions.isfinite().all()
    assert actions.shape == batch["action"].shape
    trust.check_weights(policy.state_dict(), "a checkpoint of this policy")


@pytest.mark.parametrize(
    ("objective", "typed", "said"),
    [
        ("shortcut", "objective.self_share=1.5", "objective.self_share=1.5, expected a number of at least 0"),
        ("edm", "objective.sigma_min=30.0", "sigma_min=30.0, expected a noise level below sigma_max=20.0"),
        ("edm", "objective.sigma_data=0", "objective.sigma_data=0, expected a number"),
        ("consistency", "objective.rho=0", "objective.rho=0, expected a number of at least 1"),
        ("mip", "objective.t=1", "objective.t=1, expected a number"),
    ],
)
def test_numbers_outside_their_range_are_refused_before_training(objective, typed, said):
    config = composed("+experiment=pusht_state_small", f"objective={objective}", typed)
    with pytest.raises(ValueError, match=re.escape(said)):
        build.check(config)


def test_a_scheduler_that_does_not_count_is_refused(run, tmp_path):
    refused = run("objective=flow", "scheduler=ddpm", "run_dir=flow")
    assert "scheduler=ddpm: Flow uses no scheduler. Leave it out" in refused.stderr
    assert run("objective=flow", "scheduler.num_inference_steps=3", "run_dir=flow").returncode == 0
    refused = run_py("workspace=evaluate", "checkpoint=flow", "scheduler=ddpm", "device=cpu", cwd=tmp_path)
    assert "Flow uses no scheduler" in refused.stderr

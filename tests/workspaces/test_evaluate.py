"""Evaluating checkpoints: the protocol, the overrides, and files from strangers."""

import json
import os
import subprocess
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from tests.cli import run_py
from workspaces import trust
from workspaces.report import runs

QUICK = [
    "env_runner.n_episodes=3",
    "env_runner.max_steps=20",
    "env_runner.n_workers=0",
    "env_runner.n_videos=1",
    "logger.mode=disabled",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained(folder, run):
    if not (folder / "run").is_dir():
        assert run(f"run_dir={folder / 'run'}", "workspace.num_steps=6").returncode == 0
    return folder / "run"


def evaluate(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In a folder and an environment without any data set."""
    environment = {k: v for k, v in os.environ.items() if k != "DP_PUSHT_ZARR"}
    return run_py("workspace=evaluate", *QUICK, *overrides, cwd=cwd, env=environment, timeout=120)


def result_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "evaluation.json").read_text())


def test_it_scores_as_the_training_run_did_and_needs_no_data(trained, tmp_path):
    result = evaluate(f"checkpoint={trained}/checkpoints/last.pt", "run_dir=out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    evaluation = result_of(tmp_path / "out")
    in_training = json.loads((trained / "rollouts/6.json").read_text())
    assert evaluation["episodes"] == in_training[:3]
    assert evaluation["score"] == pytest.approx(sum(row["max_reward"] for row in in_training[:3]) / 3)
    assert evaluation["score_ci_low"] <= evaluation["score"] <= evaluation["score_ci_high"]
    assert evaluation["success_ci_low"] <= evaluation["success"] <= evaluation["success_ci_high"]
    assert evaluation["n_episodes"] == 3
    assert evaluation["inference_ms"] > 0
    assert evaluation["privileged"] is False
    assert evaluation["protocol"]["seeds"] == [100000, 100002]
    assert evaluation["protocol"]["max_steps"] == 20
    assert (tmp_path / "out/media/6-100000.mp4").stat().st_size > 1000


def test_the_best_checkpoints_evaluate_too(trained, tmp_path):
    (best,) = (trained / "checkpoints").glob("best-*.pt")
    result = evaluate(f"checkpoint={best}", "run_dir=out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{result_of(tmp_path / 'out')['score']:.3f}" in best.name


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["scheduler=ddpm"], {"_target_": "diffusers.DDPMScheduler", "num_inference_steps": 100}),
        (["scheduler=dpm_solver", "scheduler.num_inference_steps=5"], {"num_inference_steps": 5}),
        (["scheduler.num_inference_steps=4"], {"_target_": "diffusers.DDIMScheduler", "num_inference_steps": 4}),
    ],
)
def test_another_sampler_keeps_the_noise_schedule(trained, tmp_path, overrides, expected):
    result = evaluate(f"checkpoint={trained}/checkpoints/last.pt", "run_dir=out", *overrides, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    scheduler = result_of(tmp_path / "out")["settings"]["scheduler"]
    assert scheduler.items() >= expected.items()
    assert scheduler["num_train_timesteps"] == 100


def test_guidance_is_an_evaluations_own_and_a_privileged_one_says_so(trained, tmp_path):
    guidance = ("guidance=best_of_n", "guidance.n=2", "guidance.critic=simulator")
    result = evaluate(f"checkpoint={trained}/checkpoints/last.pt", "run_dir=out", *guidance, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "(privileged: guided by the environment's true state)" in result.stderr
    evaluation = result_of(tmp_path / "out")
    assert evaluation["privileged"] is True
    settings = {"_target_": "dp.guidance.BestOfN", "n": 2, "critic": "simulator", "path": None}
    assert evaluation["settings"]["guidance"] == settings
    refused = evaluate("workspace.baseline=do_nothing", "task=pusht_state", *guidance, cwd=tmp_path)
    assert refused.returncode == 1
    assert "guidance chooses among a policy's samples" in refused.stderr


def test_a_harder_test_has_another_protocol(trained, tmp_path):
    checkpoint = f"checkpoint={trained}/checkpoints/last.pt"
    assert evaluate(checkpoint, "run_dir=plain", cwd=tmp_path).returncode == 0
    harder = ("guidance=inpainting", "env_runner.n_late=3", "env_runner.kick=20", "env_runner.max_steps=60")
    result = evaluate(checkpoint, "run_dir=harder", *harder, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    plain, hard = (result_of(tmp_path / name) for name in ("plain", "harder"))
    assert "disturbances" not in plain["protocol"]
    assert hard["protocol"]["disturbances"] == "kick of 20 every 50 steps, plans 3 steps late"
    protocols = {str(run.protocol) for run in runs.find(tmp_path).finished}
    assert len(protocols) == 2
    never = evaluate(checkpoint, "env_runner.kick=20", "env_runner.max_steps=50", cwd=tmp_path)
    assert "no episode is longer than 50: there would be none" in never.stderr
    too_late = evaluate(checkpoint, "env_runner.n_late=8", cwd=tmp_path)
    assert "env_runner.n_late=8, but of a plan only 7 actions are left after n_action_steps=8" in too_late.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("horizon=12", "horizon is fixed by the checkpoint"),
        ("encoder=cnn", "encoder is fixed by the checkpoint"),
        ("+experiment=pusht_image", "experiment is fixed by the checkpoint"),
        ("scheduler.prediction_type=sample", "was trained with epsilon"),
        ("n_action_steps=16", "horizon=16 is too short"),
    ],
)
def test_what_the_weights_depend_on_cannot_be_changed(trained, tmp_path, override, message):
    result = evaluate(f"checkpoint={trained}/checkpoints/last.pt", "run_dir=out", override, cwd=tmp_path)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_architecture_is_named(trained, tmp_path):
    state = torch.load(trained / "checkpoints/last.pt", weights_only=True)
    state["config"]["denoiser"]["channels"] = [16, 48]
    torch.save(state, tmp_path / "other.pt")
    result = evaluate("checkpoint=other.pt", "run_dir=out", cwd=tmp_path)
    assert result.returncode == 1
    assert "is of another architecture: denoiser." in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert not (tmp_path / "out").exists()


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("encoder", {"_target_": "os.system", "command": "touch pwned"}),
        ("encoder", {"_target_": "dp.rollouts.pool.os.system", "command": "touch pwned"}),
        ("encoder", {"_target_": "dp.tasks.pusht.sources.download", "url": "http://127.0.0.1:9", "store": "pwned"}),
        ("denoiser", {"_target_": "torch.hub.os.system", "command": "touch pwned"}),
        ("scheduler", {"_target_": "diffusers.utils.os.system", "command": "touch pwned"}),
        ("encoder.crop", {"_target_": "os.system", "command": "touch pwned"}),
        ("encoder.crop", "${oc.env:HOME}"),
        ("task.env", {"_target_": "os.system", "_partial_": False, "command": "touch pwned"}),
        ("task.shape_meta.obs", {"agent_pos": {"shape": "${eval:'1'}"}}),
        ("encoder.crop", ({"_target_": "os.mknod", "path": "pwned"}, 16)),
        ("encoder.crop", {16}),
        ("encoder.crop", torch.Size([16])),
        ("encoder.crop", OrderedDict(_target_="os.mknod", path="pwned")),
        ("task.env.obs_names", ({"_target_": "os.mknod", "path": "pwned"},)),
        ("task.shape_meta.action", ({"_target_": "os.mknod", "path": "pwned"},)),
        ("scheduler._target_", "diffusers.SchedulerMixin"),
        ("task.env._partial_", False),
        ("encoder._partial_", True),
        ("optimizer.lr", torch.tensor(1.0)),
    ],
)
def test_a_strangers_configuration_is_refused(trained, tmp_path, monkeypatch, place, value):
    monkeypatch.chdir(tmp_path)
    config = torch.load(trained / "checkpoints/last.pt", weights_only=True)["config"]
    *path, last = place.split(".")
    node = config
    for key in path:
        node = node[key]
    keep = {k: v for k, v in node[last].items() if k == "num_inference_steps"} if last == "scheduler" else {}
    node[last] = {**value, **keep} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match="not to be trusted"):
        trust.check_targets(trust.plain(config, "it"))
    assert not any(tmp_path.iterdir())


def test_a_gymnasium_id_imports_only_trusted_modules(trained):
    config = torch.load(trained / "checkpoints/last.pt", weights_only=True)["config"]
    env = {"_target_": "dp.tasks.gymnasium.GymnasiumEnv", "_partial_": True, "id": "antigravity:Env-v0"}
    config["task"]["env"] = env
    with pytest.raises(ValueError, match=r"not to be trusted.*trust=\[antigravity\]"):
        trust.check_targets(trust.plain(config, "it"))
    trust.check_targets(trust.plain(config, "it"), ["antigravity"])
    env["id"] = "antigravity:"  # gymnasium imports it before it looks at the name
    with pytest.raises(ValueError, match="not to be trusted"):
        trust.check_targets(trust.plain(config, "it"))
    env |= {"id": "Pendulum-v1", "_partial_": False}
    with pytest.raises(ValueError, match="expected true, which is not to be trusted"):
        trust.check_targets(trust.plain(config, "it"))
    env["_partial_"] = True
    env["id"] = "Pendulum-v1"
    trust.check_targets(trust.plain(config, "it"))


def test_a_strangers_checkpoint_runs_nothing(trained, tmp_path):
    state = torch.load(trained / "checkpoints/last.pt", weights_only=True)
    trust.check_targets(trust.plain(state["config"], "it"))
    state["config"]["encoder"]["_target_"] = "dp.rollouts.pool.os.system"
    torch.save(state, tmp_path / "evil.pt")
    result = evaluate("checkpoint=evil.pt", cwd=tmp_path)
    assert result.returncode == 1
    assert "not to be trusted" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pt"]


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("step", "../../outside"),
        ("step", "/tmp/outside"),
        ("step", -1),
        ("step", 1.5),
        ("step", True),
        ("config.name", "../../outside"),
        ("config.name", "/tmp/outside"),
        ("config.name", ".."),
        ("config.name", ""),
        ("config.name", None),
        ("versions", {"torch": 2}),
        ("n_threads", 10**6),
        ("best", "none"),
        ("ema.model", {}),
        ("ema.model", None),
    ],
)
def test_a_strangers_values_lead_nowhere(trained, tmp_path, entry, value):
    state = torch.load(trained / "checkpoints/last.pt", weights_only=True)
    *path, last = entry.split(".")
    node = state
    for key in path:
        node = node[key]
    node[last] = value
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    torch.save(state, inside / "evil.pt")
    result = evaluate("checkpoint=evil.pt", cwd=inside)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "b", "evil.pt"]


def test_a_configuration_without_end_is_refused():
    endless = {}
    endless["again"] = [endless]
    with pytest.raises(ValueError, match="too far"):
        trust.plain(endless, "it")
    with pytest.raises(ValueError, match="too far"):
        trust.plain([[[0] * 100] * 100] * 100, "it")


def test_a_strangers_pickle_runs_nothing(tmp_path):
    torch.save({"format": 1, "config": Evil()}, tmp_path / "evil.pt")
    result = evaluate("checkpoint=evil.pt", cwd=tmp_path)
    assert result.returncode == 1
    assert "damaged or not a checkpoint" in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pt"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip file"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    result = evaluate("checkpoint=bad.pt", cwd=tmp_path)
    assert result.returncode == 1
    assert "bad.pt is damaged or not a checkpoint" in result.stderr
    assert "Traceback" not in result.stderr


def test_doing_nothing_scores_what_the_initial_states_cover(tmp_path):
    result = evaluate(
        "workspace.baseline=do_nothing", "task=pusht_state", "run_dir=out", "env_runner.n_episodes=50", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    evaluation = result_of(tmp_path / "out")
    assert evaluation["score"] * 0.95 == pytest.approx(0.069, abs=0.005)  # mean coverage of the 50 test states
    assert evaluation["success"] == 0


def test_replaying_the_demonstrations_scores_what_they_reached(official_zarr, tmp_path):
    result = evaluate(
        "workspace.baseline=replay", "task=pusht_state", f"dataset.path={official_zarr}", "run_dir=out",
        "env_runner.start_seed=0", "env_runner.n_episodes=206", "env_runner.n_workers=2", "env_runner.n_videos=0",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    evaluation = result_of(tmp_path / "out")
    assert evaluation["score"] == pytest.approx(0.947, abs=5e-4)
    assert evaluation["success"] * 206 == pytest.approx(7)

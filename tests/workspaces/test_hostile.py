"""Files that somebody forged or a disk damaged: each is refused in a line, at once, and runs nothing."""

import copy
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from tests.workspaces.test_train_state import config, trained
from workspaces import build, checkpoint, record
from workspaces.beginning import load_run
from workspaces.evaluate import load_policy
from workspaces.foreign import check_inside, read_yaml
from workspaces.report.runs import find

CPU = torch.device("cpu")
MUCH = 10**11


@pytest.fixture(scope="module")
def sound() -> dict:
    """The state of a training, as `last.pt` holds it."""
    about = {"config": config(), "versions": {"torch": "2"}, "wandb_id": "abc"}
    return {**trained().state_dict(), **about, "format": checkpoint.FORMAT}


def changed(state: dict, place: str, value: object) -> dict:
    """A copy with another value at a place, or without it."""
    state = copy.deepcopy(state)
    *path, last = place.split("/")
    node = state
    for key in path:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return state


def given(path: Path) -> dict:
    return {**config(), "checkpoint": str(path)}


def test_a_sound_file_is_loaded(sound, tmp_path):
    torch.save(sound, tmp_path / "last.pt")
    assert load_policy(given(tmp_path / "last.pt"), "eager", CPU).about["step"] == 3


WEIGHT = "denoiser.final_conv.1.weight"


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("ema", ..., "lacks ema"),
        ("ema/model", ..., "lacks ema.model"),
        ("ema/model", {}, "holds no weights"),
        ("step", ..., "lacks step"),
        ("step", -1, "step=-1, expected a whole number"),
        ("step", True, "step=True"),
        ("versions", ..., "lacks versions"),
        ("versions", ["torch"], "versions=list"),
        ("best", [{"step": 1, "file": "../x", "score": 1.0}], "file='../x'"),
        ("best", [{"step": "1", "file": "x", "score": 1.0}], "step='1'"),
        ("rng", torch.zeros(7, dtype=torch.uint8), "rng=Tensor, expected a tensor uint8"),
        ("n_threads", 10**6, "n_threads=1000000"),
        ("precision", "fp8", "precision='fp8'"),
        ("config/horizon", ..., "lacks horizon"),
        ("config/horizon", 10**9, "horizon=1000000000"),
        ("config/noise_draws", 10**9, "noise_draws"),
        ("config/name", "a" * 1000, "name='aaa"),
        ("config/task/shape_meta/obs/agent_pos/shape", [MUCH], "shape"),
        ("config/task/shape_meta/action/shape", [60_000], "of another architecture"),
        ("config/scheduler/prediction_type", None, "prediction_type=None"),
        ("config/scheduler/num_train_timesteps", 10**9, "num_train_timesteps"),
        ("config/scheduler/num_inference_steps", 10**9, "num_inference_steps"),
        ("config/denoiser/channels", [60_000] * 5, "of another architecture"),
        ("config/denoiser/channels", [2**40], "at most 65536"),
        ("config/denoiser/channels", [8] * 10_000, "at most 64"),
        ("config/denoiser/unknown", 1, "unknown key denoiser.unknown: UNet1d has no such argument"),
        ("config/optimizer/lr", complex(1), "complex"),
        ("config/encoder", None, "encoder=None"),
        ("config/encoder/_target_", "torch.hub.load", "not to be trusted"),
        ("config/encoder/_target_", "dp.data.opening.open_zarr", "not to be trusted"),
        (f"ema/model/{WEIGHT}", torch.zeros(2, 16, 1, dtype=torch.int64), "int64"),
        (f"ema/model/{WEIGHT}", torch.full((2, 16, 1), float("nan")), "not finite"),
        (f"ema/model/{WEIGHT}", torch.zeros(1).expand(MUCH), "claims shape (100000000000,) but holds less"),
        (f"ema/model/{WEIGHT}", "text", "is not a tensor"),
    ],
)  # fmt: skip
def test_a_forged_entry_is_named(sound, tmp_path, place, value, reason):
    torch.save(changed(sound, place, value), tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt|checkpoint names") as caught:
        load_policy(given(tmp_path / "evil.pt"), "eager", CPU)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("rng", ..., "lacks rng"),
        ("optimizer", ..., "lacks optimizer"),
        ("ema/num_updates", ..., "lacks num_updates"),
        ("optimizer/param_groups", ..., "lacks param_groups"),
        ("optimizer/state", {999: {}}, "expected one of"),
        (f"policy/{WEIGHT}", ..., "policy lacks denoiser.final_conv.1.weight"),
        ("optimizer/param_groups", [], "optimizer.param_groups has 0 entries"),
        ("lr_schedule/last_epoch", "x", "lr_schedule.last_epoch is of type str"),
        (f"policy/{WEIGHT}", torch.zeros(3), "is torch.float32 [3]"),
        (f"policy/{WEIGHT}", torch.zeros(2, 16, 1).to_sparse(), "rebuild_sparse_tensor"),
        ("pending", torch.zeros(3), "pending=Tensor"),
        ("metrics_offset", -5, "metrics_offset=-5"),
    ],
)
def test_a_run_with_a_forged_state_does_not_go_on(sound, tmp_path, place, value, reason):
    (tmp_path / "checkpoints").mkdir()
    torch.save(changed(sound, place, value), tmp_path / "checkpoints/last.pt")
    rng = torch.get_rng_state()

    def resume() -> None:
        state = load_run(tmp_path, config())
        assert state is not None
        trained().load_state_dict(state)

    with pytest.raises(ValueError, match=r".") as caught:
        resume()
    assert reason in str(caught.value)
    torch.set_rng_state(rng)


class Allocates:
    def __reduce__(self):
        return bytearray, (MUCH,)


def _bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("archive/data.pkl", pickle.dumps({}, 2))
        bundle.writestr("archive/data/0", bytes(10**7))


def _legacy(path: Path) -> None:
    torch.save({"format": 1}, path, _use_new_zipfile_serialization=False)


def _loop(path: Path) -> None:
    endless: dict = {"format": checkpoint.FORMAT}
    endless["best"] = [endless]
    torch.save(endless, path)


def _laughs(path: Path) -> None:
    level: list = [0] * 100
    for _ in range(8):
        level = [level] * 100
    torch.save({"format": checkpoint.FORMAT, "best": level}, path)


@pytest.mark.parametrize(
    "write",
    [
        _bomb, _legacy, _loop, _laughs,
        lambda path: torch.save({"format": 1, "x": Allocates()}, path),
        lambda path: torch.save({"format": 1, "x": torch.empty(MUCH, device="meta")}, path),
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
        lambda path: path.symlink_to("/dev/zero"),
    ],
)  # fmt: skip
def test_a_file_that_could_take_all_memory_is_refused(tmp_path, write):
    write(tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt"):
        checkpoint.load(tmp_path / "evil.pt")


def test_flipped_bytes_are_found_and_the_newest_whole_file_is_named(sound, tmp_path):
    for name in ("last.pt", "best-000001-0.100.pt", "best-000002-0.500.pt", "best-000003-0.400.pt"):
        torch.save(sound, tmp_path / name)
    for name in ("last.pt", "best-000003-0.400.pt"):
        content = bytearray((tmp_path / name).read_bytes())
        half = len(content) // 2
        content[half : half + 64] = bytes(byte ^ 255 for byte in content[half : half + 64])
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError,
        match=r"does not match its checksum.*newest intact checkpoint of this run is .*best-000002-0\.500\.pt",
    ):
        checkpoint.load(tmp_path / "last.pt")


def test_a_file_that_may_not_be_read_is_not_called_damaged(sound, tmp_path, monkeypatch):
    torch.save(sound, tmp_path / "last.pt")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "last.pt")

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr(zipfile.io, "open", refuse)
    with pytest.raises(PermissionError):
        checkpoint.load(tmp_path / "last.pt")


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.log", ".lock", "checkpoints", "media", "media/3-1.mp4"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_run_directory_leads_nowhere(tmp_path, name, kind):
    place = tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    check_inside(tmp_path / "run")
    place.symlink_to(tmp_path / "elsewhere") if kind == "link" else os.mkfifo(place)
    with pytest.raises(ValueError, match="set another run_dir"):
        check_inside(tmp_path / "run")


@pytest.mark.parametrize("text", ["a: &x {b: *x}", "a: &x [1]\nb: *x", "[" * 5000, "a: " + "x" * (2 << 20), "\0"])
def test_a_configuration_is_read_within_limits(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_yaml(tmp_path / "config.yaml")


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Path:
    """Two finished trainings with three episodes, `good` and `bad`, as files alone."""
    root = tmp_path_factory.mktemp("runs")
    settings = config("env_runner.n_episodes=3", "workspace.num_steps=24")
    rows = [{"seed": 100_000 + n, "max_reward": 0.5, "success": False, "length": 9} for n in range(3)]
    about = {"verb": "train", "state": "finished", "overrides": [], "ended": "2030-01-01T00:00:00+00:00"}
    for name in ("good", "bad"):
        (root / name / "rollouts").mkdir(parents=True)
        files = {"config.yaml": json.dumps(settings), "run.json": json.dumps(about)}
        files |= {"metrics.jsonl": '{"step": 24, "rollout/score": 0.5}\n', "rollouts/24.json": json.dumps(rows)}
        for file, content in files.items():
            (root / name / file).write_text(content)
    return root


@pytest.mark.parametrize(
    ("file", "change"),
    [
        *[("run.json", change) for change in (
            {"ended": "yesterday"}, {"ended": 5}, {"ended": "2026-11-25T19:00:00"}, {"begun": "x"}, {"overrides": None},
            {"overrides": [1]}, {"machine": "x"}, {"machine": {}}, {"versions": ["x"]}, {"state": None}, "[" * 200_000,
            {"score": "high"}, {"error": "x" * 10**6},
        )],
        *[("config.yaml", change) for change in (
            {"seed": "a"}, {"seed": None}, {"horizon": []}, {"task": "x"}, {"workspace": {"num_steps": "24"}},
            {"dataset": "x"}, {"dataset": {"sha256": 5}}, {"name": ["a"]}, {"name": "a" * 10**6}, {"name": "$x$"},
            {"env_runner": {"n_episodes": 10**15}}, {"name": "${oc.env:HOME}"}, {"logger": "x"},
        )],
        *[("metrics.jsonl", change) for change in (
            {"rollout/score": "high"}, {"step": "abc"}, {"train/loss": [1]}, "[" * 200_000, {"step": -1},
            {"rollout/score": 10**400}, {"rollout/score": "NaN"},
        )],
        *[("rollouts/24.json", change) for change in (
            "[]", "{}", '[{"seed": "a"}]', '[{"seed": 100000, "max_reward": NaN, "success": true, "length": 1}]',
        )],
        *[(file, kind) for file in ("run.json", "config.yaml", "metrics.jsonl") for kind in ("pipe", "zero")],
    ],
)  # fmt: skip
def test_a_damaged_run_is_left_out_alone(two_runs, tmp_path, file, change):
    shutil.copytree(two_runs, tmp_path / "runs")
    path = tmp_path / "runs/bad" / file
    if isinstance(change, dict):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}) + "\n")
    else:
        path.unlink()
        if change == "pipe":
            os.mkfifo(path)
        elif change == "zero":
            path.symlink_to("/dev/zero")
        else:
            path.write_text(change)
    found = find(tmp_path / "runs")
    assert [run.path.name for run in found.finished] == ["good"]
    (left,) = found.left_out
    assert (left.path.name, left.state) == ("bad", "damaged")
    assert left.reason
    assert len(left.reason) < 600


def test_a_run_without_damage_counts(two_runs):
    assert [run.path.name for run in find(two_runs).finished] == ["bad", "good"]


@pytest.mark.parametrize("content", ["", "{}", '{"state": 3}', '{"state": "finished", "score": "x"}', "[" * 100_000])
def test_a_damaged_run_json_is_written_anew(tmp_path, content):
    (tmp_path / record.FILE).write_text(content)
    assert record.state_of(tmp_path) == "interrupted"
    record.begin(tmp_path, "train", CPU)
    record.end(tmp_path, "finished", 0.5)
    assert record.read(tmp_path)["score"] == 0.5


def test_networks_have_the_same_shapes_without_memory():
    shapes = {name: list(tensor.shape) for name, tensor in build.network_shapes(config()).items()}
    own = {name: list(tensor.shape) for name, tensor in build.policy(config()).state_dict().items()}
    assert shapes == {name: shape for name, shape in own.items() if not name.startswith("normalizer.")}

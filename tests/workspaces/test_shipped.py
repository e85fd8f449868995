"""Policies as small files."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from tests.cli import run_py
from workspaces import checkpoint, shipped


@pytest.fixture
def run_dir(run, tmp_path):
    result = run("run_dir=trained", "workspace.num_steps=2", "workspace.every.rollout=100", "denoiser.channels=[64,96]")
    assert result.returncode == 0, result.stderr
    return tmp_path / "trained"


def test_it_keeps_the_weights_as_exactly_as_its_bits_allow(run_dir, tmp_path):
    state = checkpoint.load(run_dir / "checkpoints/last.pt")
    weights = state["ema"]["model"]
    sizes = {}
    for bits, tolerance in ((8, 1 / 254), (16, 1 / 2048), (32, 0)):
        path = tmp_path / f"{bits}" / shipped.FILE
        shipped.write(path, state, bits)
        assert checkpoint.find(str(path.parent)) == path
        read = checkpoint.load(path)
        sizes[bits] = path.stat().st_size
        assert (read["step"], read["config"]) == (state["step"], state["config"])
        for name, tensor in weights.items():
            got = read["ema"]["model"][name]
            assert got.dtype == tensor.dtype
            if tensor.ndim < 2 or tensor.numel() < shipped.LARGE or bits == 32:
                assert torch.equal(got, tensor), name
            else:
                largest = tensor.flatten(1).abs().amax(1).reshape(-1, *[1] * (tensor.ndim - 1))
                assert ((got - tensor).abs() <= tolerance * largest * 1.001 + 1e-7).all(), name
    assert sizes[8] < 0.35 * sizes[32]
    assert sizes[16] < 0.6 * sizes[32]


def test_it_is_evaluated_like_a_checkpoint(run_dir, tmp_path):
    shipped.write(tmp_path / "small" / shipped.FILE, checkpoint.load(run_dir / "checkpoints/last.pt"), 32)
    roll = ["workspace=evaluate", "device=cpu", "logger.mode=disabled", "env_runner.n_workers=0", "n_threads=1"]
    roll += ["env_runner.n_episodes=2", "env_runner.max_steps=24", "env_runner.n_videos=0"]
    rows = []
    for name in ("trained", "small"):
        result = run_py(*roll, f"checkpoint={name}", f"run_dir=e-{name}", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        rows.append(re.search(r"score .* success", result.stderr)[0])
    assert rows[0] == rows[1]
    refused = run_py(*roll, "checkpoint=bundled/nothing", cwd=tmp_path)
    assert "no policy of this name is bundled. There are:" in refused.stderr


def test_another_file_is_one_line(tmp_path):
    path = tmp_path / shipped.FILE
    for content in (b"", b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged or not a policy of dp"):
            checkpoint.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a policy of dp"):
        checkpoint.load(path)
    for facts in ("{}", "[]", "x", "[" * 10_000):
        save_file({"x": torch.zeros(1)}, path, {"format": shipped.FORMAT, "facts": facts})
        with pytest.raises(ValueError, match="is damaged or not a policy of dp"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "name", [path.parent.name for path in sorted(shipped.ROOT.glob(f"*/bundled/*/{shipped.FILE}"))]
)
def test_every_bundled_policy_does_what_its_card_says(name, tmp_path):
    roll = ["device=cpu", "logger.mode=disabled", "env_runner.n_workers=0", "env_runner.n_videos=1"]
    result = run_py(
        "workspace=evaluate", f"checkpoint=bundled/{name}", *roll, "env_runner.n_episodes=5", "run_dir=e", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    evaluation = json.loads((tmp_path / "e/evaluation.json").read_text())
    assert sum(row["success"] for row in evaluation["episodes"]) >= 3
    assert evaluation["score"] > 0.8
    card = (shipped.folder(f"bundled/{name}") / "README.md").read_text()
    assert "500" in card
    assert "[95 %]" in card


def test_bundled_policies_are_small_and_say_nothing_of_the_machine_they_come_from():
    files = sorted(shipped.ROOT.glob("*/bundled/*/*.safetensors"))
    assert files
    assert sum(file.stat().st_size for file in files) < 10e6
    for file in files:
        assert not re.search(rb"/(home|root|tmp|work|Users)/", file.read_bytes()[:20_000]), file

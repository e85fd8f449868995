"""A policy as a folder: saved and loaded to the bit, sent to the Hub, and refused where it is not to be trusted."""

import json
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dp import pretrained
from dp.policy import DiffusionPolicy

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "dp/tasks/pusht/bundled/pusht_state_small"

CONFIG = {
    "name": "small", "horizon": 8, "n_obs_steps": 2, "n_action_steps": 4, "noise_draws": 1,
    "task": {
        "name": "reach",
        "shape_meta": {
            "obs": {"camera": {"type": "rgb", "shape": [3, 32, 32]}, "pose": {"type": "low_dim", "shape": [3]}},
            "action": {"shape": [2]},
        },
    },
    "encoder": {"_target_": "dp.encoders.CNNEncoder", "crop": 28, "channels": [8, 8, 16, 16], "strides": [2, 2, 1, 1],
                "feature_dim": 8},
    "denoiser": {"_target_": "dp.denoisers.UNet1d", "channels": [16, 32], "step_embed_dim": 16},
    "objective": {"_target_": "dp.objectives.Diffusion"},
    "scheduler": {"_target_": "diffusers.DDIMScheduler", "num_train_timesteps": 20, "num_inference_steps": 3},
}  # fmt: skip


def policy(config: dict = CONFIG) -> DiffusionPolicy:
    torch.manual_seed(0)
    made = DiffusionPolicy(**pretrained.assemble(config)).eval()
    made.normalizer.get_buffer("action_scale").fill_(0.5)
    made.facts = {"config": config, "step": 7, "versions": {"torch": "2"}, "n_threads": 1}
    return made


def chunk(of: DiffusionPolicy) -> torch.Tensor:
    obs = {
        "camera": torch.arange(2 * 32 * 32 * 3).reshape(1, 2, 32, 32, 3).to(torch.uint8),
        "pose": torch.ones(1, 2, 3),
    }
    return of.act(obs, torch.Generator().manual_seed(3))


def test_what_is_saved_acts_as_it_did_to_the_bit(tmp_path):
    saved = policy()
    saved.save_pretrained(tmp_path / "one")
    assert sorted(file.name for file in (tmp_path / "one").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    loaded = DiffusionPolicy.from_pretrained(tmp_path / "one")
    assert torch.equal(chunk(loaded), chunk(saved))
    assert not loaded.training
    loaded.save_pretrained(tmp_path / "two")
    assert (tmp_path / "two/config.json").read_text() == (tmp_path / "one/config.json").read_text()
    assert torch.equal(chunk(DiffusionPolicy.from_pretrained(tmp_path / "two")), chunk(saved))
    assert "small" in (tmp_path / "one/README.md").read_text()


def test_a_robot_loads_it_without_configuration_and_simulators():
    code = f"""
import sys, torch
from dp.policy import DiffusionPolicy
policy = DiffusionPolicy.from_pretrained({str(BUNDLED)!r})
shapes = {{name: spec.shape for name, spec in policy.normalizer.specs.items() if name != "action"}}
print(tuple(policy.act({{name: torch.zeros(1, policy.n_obs_steps, *shape) for name, shape in shapes.items()}}).shape))
print(*sorted({{name.partition('.')[0] for name in sys.modules}}))
"""
    shape, loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.splitlines()
    assert shape == "(1, 8, 2)"
    assert not {"hydra", "omegaconf", "wandb", "workspaces", "gymnasium", "pygame", "zarr"} & set(loaded.split())


def spoiled(folder: Path, **changes: object) -> Path:
    policy().save_pretrained(folder)
    about = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        place, _, name = key.partition("__")
        if name:
            about["config"][place][name] = value
        else:
            about["config"][place] = value
    (folder / "config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoder___target_": "os.system"}, "encoder is os.system, which is not to be trusted"),
        ({"denoiser___target_": "dp.denoisers.unet1d.torch.load"}, "not to be trusted"),
        ({"denoiser__channels": [16, 64]}, "of another architecture: denoiser"),
        ({"denoiser__channels": [16, 10**9]}, "expected at most 65536"),
        ({"encoder__more": {"_target_": "os.system"}}, r"encoder\.more\._target_='os.system' is not to be trusted"),
        ({"horizon": 10**9}, "horizon=1000000000, expected a whole number"),
        ({"scheduler__num_inference_steps": "many"}, "num_inference_steps='many', expected a whole number"),
        ({"task": {}}, "describes no policy"),
        ({"encoder__colour": 3}, "describes no policy .*colour"),
    ],
)  # fmt: skip
def test_a_strangers_file_is_refused_by_name(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        DiffusionPolicy.from_pretrained(spoiled(tmp_path / "policy", **changes))


def test_what_is_no_policy_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds no policy"):
        DiffusionPolicy.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="neither a folder nor the name of a repository"):
        DiffusionPolicy.from_pretrained("/not/a/policy")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="there is no folder shared/pusht, and the Hub does not give it"):
        DiffusionPolicy.from_pretrained("shared/pusht")
    policy().save_pretrained(tmp_path / "of_lerobot")
    (tmp_path / "of_lerobot/config.json").write_text('{"type": "diffusion"}')
    with pytest.raises(ValueError, match=r"workspace=export checkpoint=.*/of_lerobot format=safetensors"):
        DiffusionPolicy.from_pretrained(tmp_path / "of_lerobot")
    made = policy()
    made.facts = None
    with pytest.raises(ValueError, match="does not know how it was made"):
        made.save_pretrained(tmp_path / "out")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload of small files needs. `asked` collects the requests."""

    asked: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.path, body))
        address = f"http://{self.headers['Host']}"
        if self.path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            answer: dict = {"files": files}
        elif self.path.endswith("/commit/main"):
            answer = {"commitUrl": f"{address}/lab/reach/commit/abc", "commitOid": "abc", "success": True}
        else:
            answer = {"url": f"{address}/lab/reach", "name": "lab/reach", "errors": [], "warnings": []}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", Hub.asked
    server.shutdown()
    server.server_close()


def test_the_hub_gets_a_repository_with_the_files_of_the_folder(hub, tmp_path, monkeypatch):
    address, asked = hub
    policy().save_pretrained(tmp_path)
    code = f"""
from dp.policy import DiffusionPolicy
print(DiffusionPolicy.from_pretrained({str(tmp_path)!r}).push_to_hub("lab/reach", private=True, token="hf_x"))
"""
    monkeypatch.setenv("HF_ENDPOINT", address)  # read when huggingface_hub is imported
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{address}/lab/reach/commit/abc"
    created = next(body for path, body in asked if path.endswith("/repos/create"))
    assert json.loads(created)["name"] == "reach"
    assert b"private" in created
    lines = next(body for path, body in asked if path.endswith("/lab/reach/commit/main")).splitlines()
    files = {line["value"]["path"]: b64decode(line["value"]["content"]) for line in map(json.loads, lines)
             if line["key"] == "file"}  # fmt: skip
    assert files.keys() == {file.name for file in tmp_path.iterdir()}
    assert files["config.json"] == (tmp_path / "config.json").read_bytes()
    sent = safetensors.torch.load(files["model.safetensors"])
    assert all(torch.equal(sent[name], tensor) for name, tensor in policy().state_dict().items())


def test_a_scale_is_one_number_per_row(tmp_path):
    tensors = {"w": torch.ones(1, 2000, dtype=torch.int8), f"w{pretrained.SCALE}": torch.ones(2000)}
    safetensors.torch.save_file(tensors, tmp_path / pretrained.WEIGHTS, {"format": pretrained.FORMAT, "facts": "{}"})
    with pytest.raises(ValueError, match=r"w is torch.int8 \[1, 2000\], but its scale has \[2000\]"):
        pretrained.read(tmp_path)

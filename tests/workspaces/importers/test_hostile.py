"""Forged policies of other projects: none runs code or takes much memory, and each is refused in a line."""

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.workspaces.importers.conftest import DATA, given, given_for
from workspaces.evaluate import load_policy
from workspaces.importers.reference import inert

CPU = torch.device("cpu")
REFERENCE = DATA / "reference/unet_lowdim.ckpt"
MUCH = 10**11
MOST_KILOBYTES = 300_000
"""Memory that a test with files of 0.3 MB may take."""


@pytest.fixture(autouse=True)
def harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails if a test wrote the file that the code in these files would write, or if the process grew."""
    monkeypatch.chdir(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert not list(tmp_path.glob("ran*"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KILOBYTES


def refused(path: Path, config: dict) -> str:
    """The message of the refusal. Raises AssertionError if it is long or does not name the file."""
    with pytest.raises(ValueError, match=r".") as caught:
        load_policy({**config, "checkpoint": str(path)}, "eager", CPU)
    text = str(caught.value)
    assert text.startswith(f"checkpoint={path}")
    assert len(text) < 700
    return text


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def tensor(storage: Any, shape: tuple, strides: tuple, offset: Any = 0) -> Runs:
    return Runs(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())


class Part:
    """A storage outside the pickle."""

    def __init__(self, *pid: Any) -> None:
        self.pid = pid


class Pickler(pickle.Pickler):
    def persistent_id(self, value: object) -> Any:
        return value.pid if isinstance(value, Part) else None


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    Pickler(file, 2).dump(value)
    return file.getvalue()


def whole() -> bytes:
    with zipfile.ZipFile(REFERENCE) as file:
        return file.read("archive/data.pkl")


def checkpoint(path: Path, content: bytes, parts: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as file:
        file.writestr("archive/data.pkl", content)
        for name, part in (parts or {}).items():
            file.writestr(f"archive/data/{name}", part)
    return path


MARKS = {"pickles": {}, "omegaconf": "", "cfg": {}, "state_dicts": {}}
FLOATS = ("storage", torch.FloatStorage, "0", "cpu", 4)
ELSEWHERE = ("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 4)
POLICY = {
    "_target_": "diffusion_policy.policy.diffusion_unet_lowdim_policy.DiffusionUnetLowdimPolicy", "horizon": 8,
    "model": {"down_dims": [8, 16], "diffusion_step_embed_dim": 8, "cond_predict_scale": True}, "n_obs_steps": 2,
    "n_action_steps": 4, "obs_dim": 20, "action_dim": 2, "oa_step_convention": True, "obs_as_global_cond": True,
    "noise_scheduler": {
        "_target_": "diffusers.schedulers.scheduling_ddpm.DDPMScheduler", "num_train_timesteps": 100,
        "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02, "clip_sample": True,
        "prediction_type": "epsilon",
    },
}  # fmt: skip


def holding(weights: object) -> bytes:
    """A pickle with a sound configuration and these weights."""
    return pickled({**MARKS, "cfg": {"policy": POLICY}, "state_dicts": {"ema_model": weights}})


def laughs(levels: int) -> list:
    level: list = [0] * 100
    for _ in range(levels):
        level = [level] * 100
    return level


CODE = [
    Runs(exec, "open('ran', 'w')"),
    Runs(getattr(__import__("os"), "system"), "touch ran"),  # noqa: B009
    Runs(__import__("importlib").import_module, "antigravity"),
    Runs(np.save, "ran", [1]),
    Runs(torch.save, {}, "ran"),
]


@pytest.mark.parametrize("code", CODE, ids=lambda code: code.call.__name__)
@pytest.mark.parametrize("place", ["cfg", "weights", "step"])
def test_code_in_a_pickle_is_not_run(tmp_path, code, place):
    content = {
        "cfg": pickled({**MARKS, "cfg": code}),
        "weights": holding({"model.x": code, "code": code}),
        "step": pickled({**MARKS, "pickles": {"global_step": pickle.dumps(code)}, "state_dicts": code}),
    }[place]
    path = checkpoint(tmp_path / "x.ckpt", content)
    assert refused(path, given("task=pusht_keypoint"))
    assert inert.load(pickle.dumps(code)).arguments == code.arguments


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02r\xff\xff\xff\x7f.", "numbers an entry"),
        (b"\x80\x02p99999999999\n.", "numbers an entry"),
        (b"\x80\x05\x96" + struct.pack("<Q", MUCH) + b".", "damaged"),
        (b"\x80\x04\x8e" + struct.pack("<Q", MUCH) + b".", "damaged"),
        (b"\x80\x02" + b"(" * 10**6 + b".", "damaged"),
        (b"\x80\x02\x82\x01.", "damaged"),
        (b"", "damaged"),
        (b"\x80\x04" + b"\x8f" * (4 << 20) + b".", "expected at most 2,097,152"),
        (b"".join(b"cx\ny%d\n" % n for n in range(2000)) + b".", "names more than 1000 classes"),
    ],
)
def test_a_forged_pickle_takes_no_memory(content, reason):
    with pytest.raises(ValueError, match=reason):
        inert.load(content)


@pytest.mark.parametrize(
    ("content", "parts", "reason"),
    [
        (pickled({**MARKS, "cfg": laughs(8)}), {}, "nested or repeated too far"),
        (pickled({**MARKS, "cfg": {"policy": {**POLICY, "horizon": "${policy.horizon}"}}}), {}, "refers to itself"),
        (pickled({**MARKS, "cfg": {"policy": {**POLICY, "horizon": MUCH}}}), {}, "horizon=100000000000"),
        (pickled({**MARKS, "cfg": {"policy": {**POLICY, "obs_dim": MUCH}}}), {}, "obs_dim=100000000000"),
        (pickled({**MARKS, "cfg": {"policy": {**POLICY, "horizon": 1 << 40_000}}}), {}, "a whole number of 40001 bits"),
        (pickled({**MARKS, "cfg": {1, 2}}), {}, "__builtin__.set, expected a container of OmegaConf"),
        (pickled({**MARKS, "cfg": {"policy": POLICY}, "state_dicts": []}), {}, "holds no network"),
        (holding({"model.x": [1.0]}), {}, "model.x is not a tensor"),
        (holding({"model.x": tensor(Part(*FLOATS), (MUCH,), (1,))}), {"0": bytes(16)}, "claims the shape"),
        (holding({"model.x": tensor(Part(*FLOATS), (MUCH,), (0,))}), {"0": bytes(16)}, "claim 100,000,000,000 numbers"),
        (holding({"model.x": tensor(Part(*FLOATS), (2,), (-1,))}), {"0": bytes(16)}, "has a shape"),
        (holding({"model.x": tensor(Part(*FLOATS), (2,), ("1",))}), {"0": bytes(16)}, "has a shape"),
        (holding({"model.x": tensor(Part(*FLOATS), (4,), (1,))}), {"0": bytes(8)}, "has 8 bytes, expected 4 numbers"),
        (holding({"model.x": tensor(Part(*FLOATS), (4,), (1,))}), {}, "archive/data/0"),
        (holding({"model.x": tensor(Part(*ELSEWHERE), (4,), (1,))}), {}, "../../etc/passwd"),
        (holding({"model.x": tensor(Part("storage", Runs, "0", "cpu", 4), (4,), (1,))}), {"0": bytes(16)}, "Runs"),
        (holding({"model.x": tensor(Part("file", "0"), (4,), (1,))}), {"0": bytes(16)}, "no storage of torch"),
        (holding({f"model.{n}": tensor(Part(*FLOATS), (4,), (1,)) for n in range(99)}), {"0": bytes(16)}, "claim 396"),
        (holding({"other.x": tensor(Part(*FLOATS), (4,), (1,))}), {"0": bytes(16)}, "other.x, which its policy"),
    ],
)  # fmt: skip
def test_a_forged_entry_is_named(tmp_path, content, parts, reason):
    assert reason in refused(checkpoint(tmp_path / "x.ckpt", content, parts), given("task=pusht_keypoint"))


def test_a_damaged_part_and_a_zip_bomb_are_refused(tmp_path):
    content = bytearray(REFERENCE.read_bytes())
    half = len(content) // 2
    content[half : half + 64] = bytes(byte ^ 255 for byte in content[half : half + 64])
    (tmp_path / "x.ckpt").write_bytes(content)
    assert refused(tmp_path / "x.ckpt", given("task=pusht_keypoint"))
    bomb = checkpoint(tmp_path / "b.ckpt", whole(), {"0": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED)
    assert "could unpack to any size" in refused(bomb, given("task=pusht_keypoint"))


def test_weights_that_are_not_finite_are_named(tmp_path):
    with zipfile.ZipFile(REFERENCE) as file:
        parts = {name.rpartition("/")[2]: file.read(name) for name in file.namelist() if "/data/" in name}
    parts = {name: np.full(len(part) // 4, np.nan, np.float32).tobytes() for name, part in parts.items()}
    assert "not finite" in refused(checkpoint(tmp_path / "x.ckpt", whole(), parts), given("task=pusht_keypoint"))


def header(**tensors: object) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("model.safetensors", b"", "model.safetensors is damaged"),
        ("model.safetensors", struct.pack("<Q", MUCH), "model.safetensors is damaged"),
        ("model.safetensors", header(x={"dtype": "F32", "shape": [MUCH], "data_offsets": [0, 4 * MUCH]}), "is damaged"),
        ("model.safetensors", header(x={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}) + bytes(4), "have x"),
        ("config.json", b"[" * 100_000, "config.json is not JSON"),
        ("config.json", b"[]", "config.json holds no fields"),
        ("config.json", b" " * (2 << 20), "config.json has 2,097,152 bytes"),
        ("policy_preprocessor.json", b"{}", "policy_preprocessor.json lacks steps"),
        ("policy_postprocessor.json", None, "policy_postprocessor.json is missing"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_forged_file_of_lerobot_is_named(lerobot, file, content, reason):
    folder = lerobot("state")
    (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
    assert reason in refused(folder / "model.safetensors", given_for("state"))


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b"])
def test_statistics_lie_next_to_the_policy(lerobot, name):
    folder = lerobot("state")
    content = json.loads((folder / "policy_preprocessor.json").read_text())
    content["steps"][-1]["state_file"] = name
    (folder / "policy_preprocessor.json").write_text(json.dumps(content))
    assert "a name of letters" in refused(folder / "model.safetensors", given_for("state"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.popitem(), "is of another architecture"),
        (lambda weights: weights.update({"diffusion.unet.up": torch.zeros(1)}), "is of another architecture"),
        (lambda weights: weights.update({"diffusion.rgb_encoder.out.bias": torch.zeros(1)}), "does not have"),
        (lambda weights: next(iter(weights.values())).fill_(float("nan")), "not finite"),
        (lambda weights: weights.update({"normalize_inputs.x": torch.zeros(1)}), None),
    ],
)
def test_forged_weights_of_lerobot_are_named(lerobot, change, reason):
    folder = lerobot("state")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    if reason is None:  # statistics that nothing refers to
        load_policy({**given_for("state"), "checkpoint": str(folder)}, "eager", CPU)
    else:
        assert reason in refused(folder / "model.safetensors", given_for("state"))


def test_statistics_of_another_size_or_kind_are_named(lerobot):
    folder = lerobot("state")
    file = next(folder.glob("policy_preprocessor_*.safetensors"))
    for value, reason in ((torch.zeros(3), "different shapes"), (torch.full((2,), float("nan")), "not finite")):
        save_file({**load_file(file), "observation.state.min": value}, file)
        assert reason in refused(folder / "model.safetensors", given_for("state"))


def test_a_pipe_is_not_waited_for(lerobot):
    folder = lerobot("state")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert refused(folder / "model.safetensors", given_for("state"))

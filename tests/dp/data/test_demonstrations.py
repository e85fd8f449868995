"""Any recordings train, also those that are larger than memory."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dp.data import Demonstrations, open_zarr
from dp.data.windows import prepare
from dp.modalities import parse_shape_meta
from tests.dp.data.stores import SHAPE_META, robot, write


def demonstrations(*paths: Path, meta: Mapping[str, Any] = SHAPE_META, **settings: Any) -> Demonstrations:
    return open_zarr(*parse_shape_meta(meta), path=[str(path) for path in paths], **settings)


def test_windows_of_a_robot_hold_every_camera_and_all_actions(tmp_path: Path) -> None:
    arrays = robot()
    data = demonstrations(write(tmp_path / "a.zarr", arrays), val_ratio=0.25)
    assert (data.n_episodes, len(data.split.val), len(data.train_episodes)) == (4, 1, 3)
    windows = data.windows(data.train_episodes, 16, 2, 8)
    batch = prepare(windows.gather(torch.tensor([3, 5])))
    assert {name: tuple(x.shape) for name, x in batch["obs"].items()} == {
        "front": (2, 2, 3, 12, 16),
        "wrist": (2, 2, 3, 10, 8),
        "joints": (2, 2, 7),
        "gripper": (2, 2, 1),
    }
    assert batch["action"].shape == (2, 16, 7)
    assert {x.dtype for x in (*batch["obs"].values(), batch["action"])} == {torch.float32}
    rows = windows.table[5].numpy()
    expected = arrays["data/front"][rows[:2]].transpose(0, 3, 1, 2) / 255
    np.testing.assert_allclose(batch["obs"]["front"][1], expected, atol=1e-6)
    back = data.normalizer.unnormalize("action", batch["action"][1])
    np.testing.assert_allclose(back, arrays["data/action"][rows], atol=1e-4)


def test_normalisation_is_the_entrys(tmp_path: Path) -> None:
    meta = {**SHAPE_META, "action": {"shape": [7], "normalize": "mean_std"}}
    data = demonstrations(write(tmp_path / "a.zarr", robot()), meta=meta)
    action = data.windows(np.arange(4), 16, 2, 8).action
    torch.testing.assert_close(action.std(0, correction=0), torch.ones(7))
    assert not data.normalizer.clamps("action")


def test_no_episode_number_is_taken_for_a_seed(tmp_path: Path) -> None:
    data = demonstrations(write(tmp_path / "a.zarr", robot()))
    assert list(data.train_seeds) == []
    assert data.executed_actions() == {}


def test_the_digest_is_that_of_the_numbers_however_they_are_stored(tmp_path: Path) -> None:
    one = demonstrations(write(tmp_path / "a.zarr", robot()))
    other = demonstrations(write(tmp_path / "b.zarr", robot(), zarr_format=3), sha256=one.sha256)
    assert other.sha256 == one.sha256
    path = write(tmp_path / "c.zarr", robot(seed=1))
    with pytest.raises(ValueError, match=f"dataset.sha256={one.sha256}, but {path} has .*: these are other demonstr"):
        demonstrations(path, sha256=one.sha256)


def test_paths_that_make_no_sense_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"dataset.path={tmp_path}/none: there is no data set there"):
        demonstrations(tmp_path / "none")
    with pytest.raises(ValueError, match=r"dataset.path=null, expected a store"):
        open_zarr(*parse_shape_meta(SHAPE_META), path=None)
    path = write(tmp_path / "a.zarr", robot())
    with pytest.raises(ValueError, match=rf"dataset.path=\[{path},{path}\], expected a store, or several different"):
        demonstrations(path, path)


def test_mapped_images_give_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    data = demonstrations(write(tmp_path / "a.zarr", robot()))
    data.windows(np.arange(4), 16, 2, 8)[0]
    assert not [str(w.message) for w in recwarn if "writable" in str(w.message)]


MB = 1 << 20
ALLOWANCE = 160 * MB

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from dp.data import open_zarr
from dp.data.batches import BatchOrder, ResidentLoader
from dp.modalities import parse_shape_meta
import zarr
zarr.config.set({"threading.max_workers": 1})  # each thread has a stack of 8 MB
private = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
# RLIMIT_DATA counts what needs memory of its own: the heap, anonymous mappings and private writable mappings of files.
# A shared or read-only mapping is free, so the limit forbids copies and lets mapped files be larger. RLIMIT_AS counts
# both and would forbid every data set that is larger than the allowance, mapped or not.
resource.setrlimit(resource.RLIMIT_DATA, (private + int(sys.argv[1]),) * 2)
front = {"type": "rgb", "shape": [3, 160, 160], "key": "img"}
obs, action = parse_shape_meta({"obs": {"front": front}, "action": {"shape": [2]}})
data = open_zarr(obs, action, sys.argv[2:])
windows = data.windows(data.train_episodes, 8, 2, 4)
loader = ResidentLoader(windows, BatchOrder(len(windows), 8, seed=0), torch.device("cpu"))
for _, inputs in zip(range(20), loader):
    batch = loader.load(inputs)
print(windows.obs["front"].nbytes, batch["obs"]["front"].shape)
"""


def limited(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, str(ALLOWANCE), *map(str, paths)]
    return subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two stores of 307 MB each, images of one colour."""
    folder, n = tmp_path_factory.mktemp("large"), 4000
    paths = []
    for number in range(2):
        images = np.broadcast_to(np.uint8(7 + number), (n, 160, 160, 3))
        arrays = {
            "img": images,
            "action": np.random.default_rng(number).random((n, 2)),
            "ends": np.arange(100, n + 1, 100),
        }
        paths.append(write(folder / f"{number}.zarr", arrays, chunks={"img": (50, 160, 160, 3)}))
    return paths


def test_data_sets_larger_than_memory_are_mapped(large: list[Path]) -> None:
    for _ in range(2):  # decoded the first time, from the cache the second
        result = limited(LIMITED, *large)
        assert result.returncode == 0, result.stderr
        assert int(result.stdout.split()[0]) > 3.5 * ALLOWANCE
    copies = LIMITED.replace("loader =", "copy = windows.obs['front'].clone(); loader =")
    assert limited(copies, *large).returncode != 0  # the limit does forbid what it is to forbid

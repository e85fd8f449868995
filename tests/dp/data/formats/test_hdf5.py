"""robomimic's files are read as robomimic reads them. What is forged is named."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dp.data.formats.hdf5 import Hdf5Store
from tests.dp.data.formats.hostile import refused

LENGTHS = [9, 7, 12, 5, 6, 8, 7, 10, 11, 6, 9, 8]


def episode(number: int) -> dict[str, np.ndarray]:
    """Arrays of one demonstration as robosuite records them, small."""
    rng, length = np.random.default_rng(number), LENGTHS[number]
    return {
        "actions": rng.uniform(-1, 1, (length, 7)),
        "rewards": np.zeros(length),
        "dones": np.zeros(length, np.int64),
        "obs/robot0_eef_pos": rng.normal(size=(length, 3)),
        "obs/agentview_image": rng.integers(0, 256, (length, 12, 16, 3), np.uint8),
        "next_obs/robot0_eef_pos": rng.normal(size=(length, 3)),
    }


def write(path: Path, n_demos: int = 12, **options: object) -> Path:
    """A file whose demonstrations are stored, and listed, in the order of their names: 0, 1, 10, 11, 2."""
    with h5py.File(path, "w") as file:
        for number in sorted(range(n_demos), key=str):
            demo = file.create_group(f"data/demo_{number}")
            demo.attrs["num_samples"], demo.attrs["model_file"] = LENGTHS[number], "<mujoco/>"
            for name, values in episode(number).items():
                demo.create_dataset(name, data=values, **options)
        file["data"].attrs["env_args"] = "{}"
        file["mask/train"] = np.array([f"demo_{n}".encode() for n in range(n_demos) if n != 3])
        file["mask/valid"] = np.array([b"demo_3"])
        file["mask/20_percent"] = np.array([b"demo_2", b"demo_1"])
    return path


def recorded(name: str, numbers: range | list[int]) -> np.ndarray:
    return np.concatenate([episode(number)[name] for number in numbers])


@pytest.mark.parametrize(
    "options",
    [{}, {"chunks": True}, {"compression": "gzip"}, {"compression": "gzip", "shuffle": True, "fletcher32": True}],
)
def test_demonstrations_are_read_by_number(tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dp.data.formats.store.BLOCK_BYTES", 3000)  # pictures in several blocks per demonstration
    store = Hdf5Store(write(tmp_path / "a.hdf5", **options))
    assert store.read("episode_ends").tolist() == np.cumsum(LENGTHS).tolist()
    for name in episode(0):
        np.testing.assert_array_equal(store.read(name), recorded(name, range(12)))
        assert store.open(name).dtype == episode(0)[name].dtype
    assert [store.find(key) for key in ("action", "robot0_eef_pos", "rewards", "nothing")] == [
        "actions", "obs/robot0_eef_pos", "rewards", None,
    ]  # fmt: skip


def test_a_filter_key_chooses_demonstrations(tmp_path: Path) -> None:
    path = write(tmp_path / "a.hdf5")
    store = Hdf5Store(path, ("20_percent",))
    np.testing.assert_array_equal(store.read("actions"), recorded("actions", [1, 2]))
    both = Hdf5Store(path, ("20_percent", "valid"))
    assert both.demos == ["demo_1", "demo_2", "demo_3"]
    assert both.listed("valid").tolist() == [False, False, True]
    with refused("filter_key=test, but .* has these lists of demonstrations: 20_percent, train, valid"):
        Hdf5Store(path, ("test",))


def _actions(demo: h5py.Group, **options: object) -> h5py.Dataset:
    """Another array of actions, of 9 steps."""
    del demo["actions"]
    return demo.create_dataset("actions", (9, 7), "f8", **options)


def _external_link(file: h5py.File) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0/actions"] = h5py.ExternalLink("/etc/passwd", "/")


def _soft_link(file: h5py.File) -> None:
    del file["data/demo_1"]
    file["data/demo_1"] = h5py.SoftLink("/data/demo_0")


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((9, 7), "f8")
    layout[:] = h5py.VirtualSource("other.hdf5", "x", (9, 7))
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_virtual_dataset("actions", layout)


def _external_storage(file: h5py.File) -> None:
    _actions(file["data/demo_0"], external=[("/etc/passwd", 0, 9 * 7 * 8)])


def _bomb(file: h5py.File) -> None:
    array = _actions(file["data/demo_0"], chunks=(9, 7), compression="gzip")
    array.id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 20)))


def _large_chunk(file: h5py.File) -> None:
    array = _actions(file["data/demo_0"], chunks=(9, 7), compression="gzip")
    array.id.write_direct_chunk((0, 0), bytes(1 << 20))


def _damaged_chunk(file: h5py.File) -> None:
    array = _actions(file["data/demo_0"], chunks=(9, 7), compression="gzip")
    array.id.write_direct_chunk((0, 0), b"garbage")


def _unwritten(file: h5py.File) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_dataset("actions", (10**12, 7), "f8")


def _all_fill(file: h5py.File) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_dataset("actions", (10**12, 7), "f8", chunks=(1000, 7))


def _huge_chunks(file: h5py.File) -> None:
    del file["data/demo_0/actions"]
    file["data/demo_0"].create_dataset("actions", (10**8, 7), "f8", chunks=(10**7, 7))


def _lzf(file: h5py.File) -> None:
    _actions(file["data/demo_0"], compression="lzf")


def _cycle(file: h5py.File) -> None:
    file["data/demo_0/again"] = file["data/demo_0"]


def _shorter_rows(file: h5py.File) -> None:
    del file["data/demo_5/actions"]
    file["data/demo_5/actions"] = np.zeros((8, 6))


def _no_actions(file: h5py.File) -> None:
    del file["data/demo_0/actions"]


def _one_without(file: h5py.File) -> None:
    del file["data/demo_5/actions"]


def _no_number(file: h5py.File) -> None:
    file.move("data/demo_0", "data/first")


def _no_demos(file: h5py.File) -> None:
    del file["data"]
    file.create_group("data")


def _no_data(file: h5py.File) -> None:
    del file["data"]


def _group_for_array(file: h5py.File) -> None:
    del file["data/demo_5/actions"]
    file.create_group("data/demo_5/actions")


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (_external_link, "data/demo_0/actions is a link, which may lead to any file"),
        (_soft_link, "data/demo_1 is a link"),
        (_virtual, "data/demo_0/actions keeps its values in other files"),
        (_external_storage, "data/demo_0/actions keeps its values in other files"),
        (_bomb, "a chunk unpacks to more than the 504 bytes that are declared"),
        (_large_chunk, "a chunk has 1,048,576 bytes, but 504 are declared"),
        (_damaged_chunk, "data/demo_0/actions cannot be read"),
        (_unwritten, "declares 56,000,000,000,000 bytes for shape .*, but the file holds 0"),
        (_all_fill, "no recording compresses that well"),
        (_huge_chunks, "declares chunks of 560,000,000 bytes"),
        (_lzf, "is packed with filter 32000, which may unpack to anything. Repack the file"),
        (_cycle, "has too many members, or members within members"),
        (_shorter_rows, "actions differs between demonstrations"),
        (_no_actions, "data/demo_0 has no actions, it has"),
        (_one_without, "data/demo_5/actions is missing"),
        (_no_number, "has data/first, expected data/demo_<number>"),
        (_no_demos, "has 0 demonstrations"),
        (_no_data, "a.hdf5: /data is missing: expected robomimic's layout"),
        (_group_for_array, "data/demo_5/actions is Group, expected Dataset"),
    ],
)  # fmt: skip
def test_a_forged_file_is_named(tmp_path: Path, forge: Callable[[h5py.File], None], said: str) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        forge(file)
    with refused(said):
        Hdf5Store(path).read("actions")


@pytest.mark.parametrize("names", [[b"demo_99"], np.zeros(3), np.zeros(0, "S9"), np.zeros((2, 2), "S9")])
def test_a_list_of_other_things_is_named(tmp_path: Path, names: object) -> None:
    path = write(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["mask/odd"] = np.array(names)
    with refused("mask/"):
        Hdf5Store(path, ("odd",))


@pytest.mark.parametrize("damage", ["cut", "pipe", "zeros"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a.hdf5")
    content = path.read_bytes()
    path.unlink()
    if damage == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content[:3000] if damage == "cut" else content[:1000] + bytes(len(content) - 1000))
    with refused(r"a\.hdf5"):
        Hdf5Store(path).read("actions")

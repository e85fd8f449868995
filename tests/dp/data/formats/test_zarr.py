"""Whatever zarr can write is read; what is damaged is named."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from dp.data.formats.zarr import ZarrStore
from tests.dp.data.stores import write

VALUES = {
    "data/deep/er/x": np.arange(60.0).reshape(20, 3),
    "y": np.arange(1, 21),
}

LAYOUTS: dict[str, dict[str, Any]] = {
    "v2": {},
    "v2 nested": {"separator": "/"},
    "v2 chunks along columns": {"chunks": {"data/deep/er/x": (7, 2), "y": (3,)}},
    "v2 chunks along columns, nested": {"separator": "/", "chunks": {"data/deep/er/x": (7, 2)}},
    "v3": {"zarr_format": 3},
    "v3 one chunk": {"zarr_format": 3, "chunks": {"data/deep/er/x": (20, 3), "y": (20,)}},
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read(tmp_path: Path, layout: str, packed: bool) -> None:
    path = write(tmp_path / "a.zarr", VALUES, **LAYOUTS[layout])
    store = ZarrStore(Path(shutil.make_archive(str(path), "zip", path)) if packed else path)
    assert store.names == ["data/deep/er/x", "y"]
    for name, values in VALUES.items():
        np.testing.assert_array_equal(store.read(name), values)
        np.testing.assert_array_equal(np.concatenate([block for _, block in store.blocks(name)]), values)


def test_shards_are_read(tmp_path: Path) -> None:
    values = np.arange(60.0).reshape(20, 3)
    store = ZarrStore(write(tmp_path / "a.zarr", {"x": values}, 3, chunks={"x": (2, 3)}, shards=(10, 3)))
    np.testing.assert_array_equal(store.read("x"), values)


def test_a_zip_may_hold_the_folder_itself(tmp_path: Path) -> None:
    write(tmp_path / "in/a.zarr", VALUES)
    store = ZarrStore(Path(shutil.make_archive(str(tmp_path / "a.zarr"), "zip", tmp_path / "in")))
    found = store.find("y")
    assert found == "a.zarr/y"
    np.testing.assert_array_equal(store.read(found), VALUES["y"])


def test_a_key_may_leave_out_the_folders_where_one_array_alone_ends_with_it(tmp_path: Path) -> None:
    store = ZarrStore(write(tmp_path / "a.zarr", {"a/x": VALUES["y"], "b/x": VALUES["y"], "b/y": VALUES["y"]}))
    assert [store.find(key) for key in ("a/x", "y", "x", "z")] == ["a/x", "b/y", None, None]


def test_blocks_are_whole_rows_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ZarrStore(write(tmp_path / "a.zarr", {"x": np.arange(60.0).reshape(20, 3)}))
    assert [rows for rows, _ in store.blocks("x")] == [slice(0, 20)]
    monkeypatch.setattr("dp.data.formats.zarr.BLOCK_BYTES", 1)
    assert [rows for rows, _ in store.blocks("x")] == [slice(0, 7), slice(7, 14), slice(14, 20)]


def test_a_chunk_that_zarr_left_out_holds_the_fill_value(tmp_path: Path) -> None:
    values = np.arange(60.0).reshape(20, 3)
    values[:7] = 0
    path = write(tmp_path / "a.zarr", {"x": values})
    assert ZarrStore(path).missing_chunks("x") == ["x/0.0"]
    np.testing.assert_array_equal(ZarrStore(path).read("x"), values)
    with pytest.raises(ValueError, match=f"chunk {path}/x/0.0 is missing. Mend it"):
        ZarrStore(path, complete=True, advice="Mend it").read("x")


def test_a_missing_chunk_without_a_fill_value_is_lost(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))})
    metadata = json.loads((path / "x/.zarray").read_text())
    (path / "x/.zarray").write_text(json.dumps({**metadata, "fill_value": None}))
    (path / "x/1.0").unlink()
    with pytest.raises(ValueError, match=f"chunk {path}/x/1.0 is missing$"):
        ZarrStore(path).read("x")


@pytest.mark.parametrize(
    ("layout", "chunk"), [({}, "x/1.0"), ({"separator": "/"}, "x/1/0"), ({"zarr_format": 3}, "x/c/1/0")]
)
def test_a_corrupt_chunk_is_named_and_nobody_is_told_to_delete(
    tmp_path: Path, layout: dict[str, Any], chunk: str
) -> None:
    path = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))}, **layout)
    (path / chunk).write_bytes(b"garbage" * 10)
    with pytest.raises(ValueError, match=f"chunk {path}/{chunk} is corrupt") as caught:
        ZarrStore(path).read("x")
    assert "elete" not in str(caught.value)
    with pytest.raises(ValueError, match=f"chunk {path}/{chunk} is corrupt"):
        list(ZarrStore(path).blocks("x"))


def test_an_unknown_codec_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))})
    metadata = json.loads((path / "x/.zarray").read_text())
    (path / "x/.zarray").write_text(json.dumps({**metadata, "compressor": {"id": "imagecodecs_jpegxl"}}))
    with pytest.raises(ValueError, match=f"cannot read the array {path}/x: .*imagecodecs_jpegxl.*another codec"):
        ZarrStore(path).open("x")


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"there is no data set at {tmp_path}/none"):
        ZarrStore(tmp_path / "none")
    with pytest.raises(ValueError, match=f"{tmp_path} holds no zarr array"):
        ZarrStore(tmp_path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(ValueError, match=f"{tmp_path}/file is a file, expected a zarr store"):
        ZarrStore(tmp_path / "file")


def test_the_fingerprint_changes_with_a_nested_chunk(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))}, separator="/")
    before = ZarrStore(path).fingerprint("x")
    assert ZarrStore(path).fingerprint("x") == before
    (path / "x/1/0").write_bytes(b"other")
    assert ZarrStore(path).fingerprint("x") != before


def declare(path: Path, **changes: Any) -> None:
    """Changes what the metadata of x say, not its chunks."""
    file = path / "x/.zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [10**10, 3]},
        {"shape": [20, 10**12], "chunks": [7, 10**12]},
        {"shape": [2 * 10**8, 3], "chunks": [10**7, 3]},
        {"shape": [20, 10**6, 10**3], "chunks": [7, 10**6, 10**3]},
    ],
)
def test_a_store_that_declares_more_than_it_holds_is_refused_before_memory_is_taken(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    path = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))})
    declare(path, **changes)
    with pytest.raises(ValueError, match=f"{path}/x declares"):
        ZarrStore(path).open("x")


@pytest.mark.parametrize("name", ["x/.zarray", "x/.zattrs", ".zattrs", ".zgroup", "x/0.0"])
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, name: str, kind: str) -> None:
    path = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))})
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name) if kind == "pipe" else (path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{path}/{name} is not an ordinary file"):
        ZarrStore(path).open("x")


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_nobody_is_told_to_delete_data_that_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    store = ZarrStore(write(tmp_path / "a.zarr", {"x": np.ones((20, 3))}), advice="Delete it")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("dp.data.formats.zarr.zarr.open", refuse)
    with pytest.raises(type(error)):
        store.open("x")


def test_too_few_threads_are_not_called_damage(tmp_path: Path) -> None:
    store = ZarrStore(write(tmp_path / "a.zarr", {"x": np.ones((20, 3))}), advice="Delete it")

    class Array:
        shape, chunks, nbytes, fill_value = (20, 3), (7, 3), 480, 0
        metadata = store.open("x").metadata

        def __getitem__(self, _: object) -> None:
            raise RuntimeError("can't start new thread")

    store._arrays["x"] = Array()
    with pytest.raises(ValueError, match=r"cannot be read now: can't start new thread$"):
        store.read("x")


def test_missing_chunks_and_shards_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flat = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))})
    (flat / "x/1.0").unlink()
    sharded = tmp_path / "b.zarr"
    group = zarr.open_group(str(sharded), mode="w", zarr_format=3)
    group.create_array("x", shape=(20, 3), chunks=(5, 3), shards=(10, 3), dtype="f8")[...] = np.ones((20, 3))
    (sharded / "x/c/1/0").unlink()
    for path, lost in ((flat, "x/1.0"), (sharded, "x/c/1/0")):
        store = ZarrStore(path)
        assert store.missing_chunks("x") == [lost]
        store.read("x")
        list(store.blocks("x"))
        assert [lost in record.getMessage() for record in caplog.records] == [True]
        caplog.clear()


@pytest.mark.parametrize("name", ["x/.zattrs", "x/1.0", ".zattrs"])
def test_a_pipe_in_a_store_is_refused_instead_of_read_for_ever(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))})
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    with pytest.raises(ValueError, match=f"{path}/{name} is not an ordinary file"):
        ZarrStore(path).read("x")


def test_more_chunks_than_can_be_looked_at_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", {"x": np.ones((20, 3))})
    declare(path, shape=[10_500_000, 3], chunks=[1, 3])
    with pytest.raises(ValueError, match="has 10500000 chunks, expected at most 10000000"):
        ZarrStore(path).missing_chunks("x")


def test_an_array_that_memory_cannot_hold_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dp.data.formats.zarr.MEMORY_BYTES", 479)
    with pytest.raises(ValueError, match="GB, more than this machine's memory"):
        ZarrStore(write(tmp_path / "a.zarr", {"x": np.ones((20, 3))})).read("x")

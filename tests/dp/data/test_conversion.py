"""A conversion loses nothing, continues after a kill, and overwrites nothing."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from dp.data.conversion import convert, gather
from dp.data.formats import open_store, png
from tests.dp.data.stores import robot, write

FORMATS = ["zarr", "lerobot", "hdf5"]


class Killed(BaseException):
    """Ends a conversion wherever it is."""


def interrupt(*_: object) -> None:
    raise Killed


def arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(zarr.open(str(path / name), mode="r")[...]) for name in open_store(path).names}


@pytest.fixture(scope="module")
def cut(official_zarr: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two official demonstrations, with every array."""
    held = open_store(official_zarr)
    end = int(held.read("meta/episode_ends")[1])
    rows = {name: held.open(name)[:end] for name in held.names if name.startswith("data/")}
    path = tmp_path_factory.mktemp("official") / "cut.zarr"
    return write(path, {**rows, "meta/episode_ends": held.read("meta/episode_ends")[:2]})


@pytest.mark.parametrize("file_format", FORMATS)
def test_official_data_come_back_as_they_were(cut: Path, file_format: Any, tmp_path: Path) -> None:
    sha256 = convert(open_store(cut), tmp_path / "there", file_format)
    assert convert(open_store(tmp_path / "there"), tmp_path / "back.zarr", "zarr") == sha256
    before, after = arrays(cut), arrays(tmp_path / "back.zarr")
    assert before.keys() == after.keys()
    assert after["data/img"].dtype == np.uint8
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
        assert after[name].dtype == values.dtype or name == "data/img"
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("file_format", ["zarr", "hdf5"])
def test_rate_and_texts_survive_any_format(tmp_path: Path, file_format: Any, caplog: pytest.LogCaptureFixture) -> None:
    recorded = robot()
    recorded["data/task_index"] = np.repeat([0, 1], 50)
    source = open_store(write(tmp_path / "a.zarr", recorded))
    convert(source, tmp_path / "silent", "lerobot")
    assert "does not say how many control steps per second it has: fps=10" in caplog.text
    source.path.joinpath(".zattrs").write_text('{"fps": 25, "tasks": ["push", "lift"]}')
    source = open_store(source.path)
    for number, named in enumerate(("lerobot", file_format, "lerobot")):
        convert(source, tmp_path / str(number), named)
        source = open_store(tmp_path / str(number))
        assert (source.fps, [*source.tasks]) == (25, ["push", "lift"])
    convert(source, tmp_path / "faster", "lerobot", 30.0)
    assert open_store(tmp_path / "faster").fps == 30


@pytest.mark.parametrize(
    "said", ['{"fps": "x", "tasks": 3}', '{"fps": 1e999, "tasks": [3]}', "[]", "{", '{"fps": null}']
)
def test_attributes_of_somebody_else_mean_nothing(tmp_path: Path, said: str) -> None:
    path = write(tmp_path / "a.zarr", robot())
    path.joinpath(".zattrs").write_text(said)
    assert (open_store(path).fps, [*open_store(path).tasks]) == (None, [])


@pytest.mark.parametrize("file_format", FORMATS)
def test_several_cameras_and_types_survive(tmp_path: Path, file_format: Any) -> None:
    recorded = robot()
    recorded["data/done"] = recorded["data/gripper"] > 50
    recorded["data/force"] = np.random.default_rng(1).random((100, 2, 3)).astype(np.float16)
    source = open_store(write(tmp_path / "a.zarr", recorded))
    convert(source, tmp_path / "there", file_format)
    held = gather(open_store(tmp_path / "there"))
    assert held.arrays.keys() == {"front", "wrist", "qpos", "gripper", "done", "force", "action"}
    assert held.episode_ends.tolist() == [25, 50, 75, 100]
    np.testing.assert_array_equal(held.arrays["front"], recorded["data/front"])
    np.testing.assert_array_equal(held.arrays["wrist"], gather(source).arrays["wrist"])
    for name in ("qpos", "gripper", "done", "force", "action"):
        values = recorded[f"data/{name}"]
        np.testing.assert_array_equal(held.arrays[name].reshape(values.shape), values)
        assert held.arrays[name].dtype == values.dtype


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_killed_conversion_continues(tmp_path: Path, file_format: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, to = robot(), tmp_path / "there"
    source = open_store(write(tmp_path / "a.zarr", recorded))
    gather(source)  # decodes images, which counts frames, too
    monkeypatch.setattr("dp.data.writing.batches.MAX_BYTES", 30 * 1000)  # an episode a file
    monkeypatch.setattr("dp.data.conversion.Progress.update", interrupt)
    with pytest.raises(Killed):
        convert(source, to, file_format)
    assert not to.exists()
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / ".there.part").rglob("*") if file.is_file()}
    finished = [file for file in before if file.suffix in (".parquet", ".hdf5") or file.name[:1].isdecimal()]
    assert finished
    monkeypatch.undo()
    monkeypatch.setattr("dp.data.writing.batches.MAX_BYTES", 30 * 1000)
    seen: dict[Path, int] = {}
    monkeypatch.setattr(
        "dp.data.conversion.Progress.update",
        lambda *_: seen.update({file: file.stat().st_mtime_ns for file in finished if file.exists()}),
    )
    convert(source, to, file_format)
    assert seen == {file: before[file] for file in finished}  # none was written again
    np.testing.assert_array_equal(gather(open_store(to)).arrays["front"], recorded["data/front"])


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    one, other = (open_store(write(tmp_path / f"{seed}.zarr", robot(seed))) for seed in (0, 1))
    sha256 = convert(one, tmp_path / "there", "lerobot")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "there").rglob("*")}
    assert convert(one, tmp_path / "there", "lerobot") == sha256
    with pytest.raises(ValueError, match=r"there holds something else than .*1\.zarr: set another to=PATH"):
        convert(other, tmp_path / "there", "hdf5")
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "there").rglob("*")}


def test_an_unfinished_conversion_of_other_data_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (open_store(write(tmp_path / f"{seed}.zarr", robot(seed))) for seed in (0, 1))
    gather(one), gather(other)
    monkeypatch.setattr("dp.data.conversion.Progress.update", interrupt)
    with pytest.raises(Killed):
        convert(one, tmp_path / "there", "lerobot")
    with pytest.raises(ValueError, match="unfinished conversion of other data: delete it"):
        convert(other, tmp_path / "there", "lerobot")


def test_what_does_not_read_back_is_not_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, encode = open_store(write(tmp_path / "a.zarr", robot())), png.encode
    monkeypatch.setattr(png, "encode", lambda image: encode(np.minimum(image, 254)))
    with pytest.raises(ValueError, match="does not read back as it was written"):
        convert(source, tmp_path / "there", "lerobot")
    assert not (tmp_path / "there").exists()


def test_arrays_that_belong_to_no_frame_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.zarr", {**robot(), "meta/seed": np.arange(4)})
    with caplog.at_level(logging.WARNING):
        held = gather(open_store(path))
    assert "left out, as they are not numbers of every frame: meta/seed" in caplog.text
    assert "seed" not in held.arrays


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", {**robot(), "qpos": robot()["data/qpos"]})
    with pytest.raises(ValueError, match="data/qpos and qpos, which are both called qpos: rename one"):
        gather(open_store(path))

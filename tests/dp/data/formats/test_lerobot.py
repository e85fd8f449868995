"""What LeRobot wrote is read to the bit, or to a few grey levels where it is a video. What is forged is named."""

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dp.data.formats.lerobot import LeRobotStore
from tests.data.lerobot.make import LENGTHS, SIZES, TASKS, numbers, picture
from tests.dp.data.formats.hostile import refused

MADE = Path(__file__).parents[3] / "data/lerobot"
TOP = "observation.images.top"
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FILM = f"videos/{TOP}/chunk-000/file-000.mp4"


def pictures(name: str) -> np.ndarray:
    """What `make.py` recorded: uint8 (21, Y, X, 3)."""
    frames = [picture(episode, t, *SIZES[name]) for episode, length in enumerate(LENGTHS) for t in range(length)]
    return np.stack(frames)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_what_lerobot_wrote_is_read(kind: str) -> None:
    store = LeRobotStore(MADE / kind)
    assert store.fps == 10
    assert list(store.tasks) == [TASKS[0], TASKS[2]]
    assert store.read("episode_ends").tolist() == np.cumsum(LENGTHS).tolist()
    for name in ("observation.state", "action"):
        np.testing.assert_array_equal(store.read(name), np.concatenate([numbers(n)[name] for n in range(3)]))
    assert store.read("task_index")[:, 0].tolist() == [0] * 12 + [1] * 9
    assert store.read("next.done")[:, 0].nonzero()[0].tolist() == [6, 11, 20]
    for name in SIZES:
        off = np.abs(store.read(name).astype(int) - pictures(name))
        assert off.max() == 0 if kind == "image" else off.mean() < 3


def test_a_video_shows_each_frame_in_its_place() -> None:
    read = LeRobotStore(MADE / "video").read(TOP).astype(int)
    distance = np.abs(read[:, None] - pictures(TOP)[None]).mean((2, 3, 4))
    assert distance.argmin(1).tolist() == list(range(21))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_blocks_are_the_whole_in_order(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LeRobotStore(MADE / kind)
    monkeypatch.setattr("dp.data.formats.store.BLOCK_BYTES", 5 * 64 * 64 * 3)
    blocks = list(store.blocks(TOP))
    assert len(blocks) > 4
    assert [rows.start for rows, _ in blocks] == np.cumsum([0, *(len(values) for _, values in blocks[:-1])]).tolist()
    np.testing.assert_array_equal(np.concatenate([values for _, values in blocks]), store.read(TOP))


def test_a_key_may_leave_out_the_first_parts_of_a_name() -> None:
    store = LeRobotStore(MADE / "image")
    assert [store.find(key) for key in ("state", "images.top", "top", "action", "index")] == [
        "observation.state", TOP, TOP, "action", "index",
    ]  # fmt: skip


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[str], Path]:
    """A copy that a test may damage."""
    return lambda kind: shutil.copytree(MADE / kind, tmp_path / kind)


def declare(root: Path, **changes: Any) -> None:
    """Changes info.json: `a__b=1` sets info["a"]["b"]. ...: removes it."""
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    for key, value in changes.items():
        node = info
        *path, last = [part.replace("/", ".") for part in key.split("__")]
        for part in path:
            node = node[part]
        if value is ...:
            del node[last]
        else:
            node[last] = value
    file.write_text(json.dumps(info))


def read_all(root: Path) -> None:
    store = LeRobotStore(root)
    for name in store.names:
        store.read(name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codebase_version": "v2.1"}, r"codebase_version='v2\.1', expected 'v3\.0'. Convert the data set"),
        ({"codebase_version": ...}, "codebase_version='None'"),
        ({"fps": 0}, "fps=0, expected a positive number"),
        ({"fps": "10"}, "fps=10, expected a positive number"),
        ({"features": []}, "has no features"),
        ({"features": {f"x{n}": {} for n in range(2000)}}, "has no features"),
        ({"features__action__shape": [10**12]}, r"feature 'action' has dtype float32, shape \[1000000000000\]"),
        ({"features__action__shape": [3]}, r"holds 14 numbers in 7 rows, but shape \[3\] is declared"),
        ({"features__action__dtype": "int64"}, "action holds float32, but int64 is declared"),
        ({"features__action__dtype": ["x"]}, "feature 'action' has dtype"),
        ({f"features__{TOP}__shape": [60_000, 60_000, 3]}, "no recording compresses that well"),
        ({f"features__{TOP}__shape": [64, 64, 1]}, "expected pictures with three channels"),
        ({f"features__{TOP}__shape": [64, 65, 3]}, "a picture is RGB of 64 x 64 pixels, but RGB of 64 x 65"),
        ({"data_path": "/etc/passwd"}, "data_path='/etc/passwd', expected a path in this folder"),
        ({"data_path": "../{chunk_index:03d}/{file_index:03d}"}, "expected a path in this folder"),
        ({"data_path": "data/../../x"}, "expected a path in this folder"),
        ({"data_path": "{chunk_index.__class__}"}, "expected a path in this folder"),
        ({"data_path": "{chunk_index:0999999999d}"}, "expected a path in this folder"),
        ({"data_path": "{0}"}, "expected a path in this folder"),
        ({"data_path": 5}, "expected a pattern of file names"),
        ({"data_path": "x" * 10**6}, "expected a path in this folder"),
        ({"data_path": "data/{file_index:03d}.parquet"}, "data/000.parquet is missing"),
    ],
)  # fmt: skip
def test_a_forged_info_is_named(copied: Callable[[str], Path], changes: dict[str, Any], said: str) -> None:
    root = copied("image")
    declare(root, **changes)
    with refused(said):
        read_all(root)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"{}" * (9 << 20), b"null", b"pipe"])
def test_an_unreadable_info_is_named(copied: Callable[[str], Path], content: bytes) -> None:
    file = copied("image") / "meta/info.json"
    if content == b"pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    with refused(r"info\.json"):
        LeRobotStore(file.parents[1])


def with_column(file: Path, name: str, values: pa.Array, **options: Any) -> None:
    """Replaces a column of a parquet file."""
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.schema.get_field_index(name), name, values), file, **options)


def png(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size[::-1]).save(file, "PNG")
    return file.getvalue()


def stored(*files: bytes) -> pa.Array:
    """A column of 21 pictures, the last one repeated."""
    content = [*files, *[files[-1]] * (21 - len(files))]
    return pa.array(
        [{"bytes": one, "path": ""} for one in content], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([png((64, 64)), png((8000, 8000))], "row 1: a picture has .* bytes|row 1: a picture is RGB of 8000 x 8000"),
        ([png((64, 64), "L")], "a picture is L of 64 x 64 pixels"),
        ([png((64, 64))[:60]], "is no sound PNG file"),
        ([b"%!PS-Adobe-3.0 EPSF-3.0"], "is no sound PNG file"),
        ([bytes(10**6)], "a picture has 1,000,000 bytes"),
        ([b""], "is no sound PNG file"),
    ],
)
def test_a_forged_picture_is_named(copied: Callable[[str], Path], content: list[bytes], said: str) -> None:
    root = copied("image")
    with_column(root / DATA, TOP, stored(*content))
    with refused(said):
        LeRobotStore(root).read(TOP)


LISTS = pa.list_(pa.float32())


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("action", pa.array([[1.0, 2.0]] * 20 + [[1.0] * 10**6], LISTS), "holds 1,000,040 numbers"),
        ("action", pa.array([[1.0]] * 10 + [[2.0] * 3] * 10 + [[1.0, 2.0]], LISTS), "lists of .* entries"),
        ("action", pa.array([[1.0, 2.0]] * 20 + [None], pa.list_(pa.float32(), 2)), "holds|lacks values"),
        ("action", pa.array(np.ones(21, np.float32)), "holds 21 numbers in 21 rows"),
        ("action", pa.array(["x"] * 21), "holds 21 numbers|holds string"),
        ("next.reward", pa.array(["x"] * 21), "holds object, but float32 is declared"),
        ("next.reward", pa.array([None] * 21, pa.float32()), "lacks values"),
    ],
)  # fmt: skip
def test_numbers_of_another_kind_are_named(
    copied: Callable[[str], Path], name: str, values: pa.Array, said: str
) -> None:
    root = copied("image")
    with_column(root / DATA, name, values)
    with refused(said):
        LeRobotStore(root).read(name)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("length", [7, 5, 10], "has 21 frames, but its episodes have 22"),
        ("length", [7, -5, 19], "has lengths that no episodes have"),
        ("length", [7, 5, 1 << 62], "has lengths that no episodes have"),
        ("length", [7, 5, 1 << 39], "no recording compresses that well"),
        ("episode_index", [0, 2, 1], "does not count the episodes from 0"),
        ("data/file_index", [0, 1, 0], "do not lie in the data files in their order|file-001.parquet is missing"),
        ("data/chunk_index", [-1, -1, -1], "is missing"),
    ],
)
def test_episodes_that_contradict_the_frames_are_named(
    copied: Callable[[str], Path], column: str, values: list[int], said: str
) -> None:
    root = copied("image")
    with_column(root / EPISODES, column, pa.array(values, pa.int64()))
    with refused(said):
        LeRobotStore(root).read("action")


@pytest.mark.parametrize("damage", ["garbage", "cut", "pipe", "zeros"])
def test_a_damaged_parquet_file_is_named(copied: Callable[[str], Path], damage: str) -> None:
    file = copied("image") / DATA
    content = file.read_bytes()
    half = len(content) // 2
    if damage == "pipe":
        file.unlink()
        os.mkfifo(file)
    else:
        forged = {
            "garbage": b"PAR1" + bytes(100),
            "cut": content[:half],
            "zeros": content[:500] + bytes(half) + content[500 + half :],
        }
        file.write_bytes(forged[damage])
    with refused(r"file-000\.parquet"):
        LeRobotStore(file.parents[2]).read(TOP)


def film(file: Path, height: int, width: int, n_frames: int, fps: int = 10) -> None:
    with av.open(str(file), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for n in range(n_frames):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 10 * n, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("size", "n_frames", "said"),
    [
        ((64, 96), 21, "has frames of 64 x 96 pixels, but observation.images.top declares 64 x 64"),
        ((1024, 1024), 21, "file-000.mp4 (is damaged, or )?has frames of"),
        ((64, 64), 20, "has no frame 20, but its episodes need it"),
    ],
)
def test_another_video_is_named(copied: Callable[[str], Path], size: tuple[int, int], n_frames: int, said: str) -> None:
    root = copied("video")
    film(root / FILM, *size, n_frames)
    with refused(said):
        LeRobotStore(root).read(TOP)


@pytest.mark.parametrize("content", [b"", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"\0" * 5000, None])
def test_what_is_no_video_is_named(copied: Callable[[str], Path], content: bytes | None) -> None:
    file = copied("video") / FILM
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with refused(r"file-000\.mp4"):
        LeRobotStore(file.parents[3]).read(TOP)


@pytest.mark.parametrize("start", [[0, 0.7, np.nan], [0, 0.7, 1e300], [-1, 0.7, 1.2], [0, 0.1, 1.2]])
def test_times_that_no_video_has_are_named(copied: Callable[[str], Path], start: list[float]) -> None:
    root = copied("video")
    with_column(root / EPISODES, f"videos/{TOP}/from_timestamp", pa.array(start, pa.float64()))
    with refused("holds times that no video has|episodes overlap in"):
        LeRobotStore(root).read(TOP)


def test_frames_in_another_order_are_named(copied: Callable[[str], Path]) -> None:
    root = copied("image")
    table = pq.read_table(root / DATA)
    pq.write_table(table.take(list(reversed(range(len(table))))), root / DATA)
    with pytest.raises(ValueError, match="frame_index does not count the frames of each episode from 0, in order"):
        LeRobotStore(root).read("action")

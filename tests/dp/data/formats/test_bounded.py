"""A chunk takes the memory that its array declares, whatever its file says."""

import json
import os
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs as v3

from dp.data.formats.zarr import ZarrStore
from tests.dp.data.stores import write

VALUES = np.arange(60, dtype=np.float32).reshape(20, 3)
BOMB = bytes(33_566_777)
COMPRESSORS: list[Any] = [
    numcodecs.Blosc(), numcodecs.Zstd(), numcodecs.LZ4(), numcodecs.Zlib(), numcodecs.GZip(), numcodecs.BZ2(),
    numcodecs.LZMA(),
]  # fmt: skip


def unsized_zstd(n_blocks: int = 256) -> bytes:
    """A frame of repeated bytes, 128 KiB per block, that does not say how many there are."""
    blocks = ((128 << 10 << 3 | 2 | (i == n_blocks - 1)).to_bytes(3, "little") + b"a" for i in range(n_blocks))
    return b"\x28\xb5\x2f\xfd\x00\x50" + b"".join(blocks)


def declare(path: Path, **changes: Any) -> None:
    file = path / "x/.zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refused(path: Path, message: str) -> None:
    """Reading fails with `message` and takes less memory than a bomb."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            ZarrStore(path).read("x")
        assert tracemalloc.get_traced_memory()[1] < 0.9 * len(BOMB)  # LZMA's dictionaries alone take 8 MB each
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda codec: codec.codec_id)
def test_a_chunk_that_unpacks_to_more_than_its_array_declares_is_refused(
    tmp_path: Path, compressor: Any, packed: bool
) -> None:
    path = write(tmp_path / "a.zarr", {"x": VALUES}, compressors=compressor)
    np.testing.assert_array_equal(ZarrStore(path).read("x"), VALUES)
    declare(path, shape=[200, 300], chunks=[70, 300])  # honest files of this size are as large as the bomb's
    (path / "x/0.0").write_bytes(bytes(compressor.encode(BOMB)))
    if packed:
        path = Path(shutil.make_archive(str(path), "zip", path))
    refused(path, "x/0.0 is corrupt .it unpacks to more than")


def test_a_frame_of_zstd_may_leave_its_size_out(tmp_path: Path) -> None:
    values = np.full((128 << 10,), ord("a"), np.uint8)
    path = write(tmp_path / "a.zarr", {"x": values}, compressors=numcodecs.Zstd(), chunks={"x": values.shape})
    (path / "x/0").write_bytes(unsized_zstd(1))
    np.testing.assert_array_equal(ZarrStore(path).read("x"), values)
    (path / "x/0").write_bytes(unsized_zstd())
    refused(path, "x/0 is corrupt .it unpacks to more than")


@pytest.mark.parametrize(
    "layout",
    [
        {"compressors": v3.GzipCodec()},
        {"compressors": [v3.GzipCodec(), v3.Crc32cCodec()]},
        {"compressors": v3.ZstdCodec(checksum=True), "shards": (10, 3), "chunks": {"x": (5, 3)}},
        {"compressors": None, "shards": (20, 3), "chunks": {"x": (1, 1)}},
        {"compressors": v3.BloscCodec(), "filters": v3.TransposeCodec(order=(1, 0))},
        {"compressors": v3.Zlib(), "filters": [v3.Delta(dtype="<f4")]},
    ],
)
@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_honest_stores_of_version_3_are_read(tmp_path: Path, layout: dict[str, Any]) -> None:
    path = write(tmp_path / "a.zarr", {"x": VALUES}, zarr_format=3, **layout)
    for store in (path, Path(shutil.make_archive(str(path), "zip", path))):
        np.testing.assert_array_equal(ZarrStore(store).read("x"), VALUES)


@pytest.mark.parametrize(
    "filters",
    [
        [numcodecs.Delta("<f4")],
        [numcodecs.FixedScaleOffset(0, 1, "<f4", "u1"), numcodecs.Delta("u1")],
        [numcodecs.AsType("<f8", "<f4"), numcodecs.Shuffle(8)],
        [numcodecs.Shuffle(4), numcodecs.CRC32()],
    ],
)
def test_honest_filters_of_version_2_are_read(tmp_path: Path, filters: list[Any]) -> None:
    path = write(tmp_path / "a.zarr", {"x": VALUES}, filters=filters, compressors=numcodecs.Zlib())
    np.testing.assert_array_equal(ZarrStore(path).read("x"), VALUES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"filters": [{"id": "zlib"}], "compressor": {"id": "zlib"}}, "expected one compressor, after the others"),
        ({"filters": [{"id": "zlib"}, {"id": "shuffle"}], "compressor": None}, "expected one compressor"),
        ({"filters": [{"id": "base64"}]}, "the codec base64 may unpack to anything"),
        ({"filters": [{"id": "astype", "encode_dtype": "u1", "decode_dtype": "<U1000000"}]}, "expected numbers"),
        (
            {"filters": [{"id": "astype", "encode_dtype": "u1", "decode_dtype": "<f8"}] * 2},
            "change the size of numbers 2 times",
        ),
    ],
)
def test_codecs_whose_outputs_have_no_bound_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.zarr", {"x": VALUES})
    declare(path, **changes)
    refused(path, f"cannot read the array {path}/x: .*{message}")


def test_compressors_of_shards_are_counted_too(tmp_path: Path) -> None:
    twice = [v3.GzipCodec(), v3.GzipCodec()]
    path = write(tmp_path / "a.zarr", {"x": VALUES}, 3, compressors=twice, shards=(10, 3), chunks={"x": (5, 3)})
    refused(path, "expected one compressor, after the others")


def test_a_file_larger_than_a_chunk_can_be_is_not_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", {"x": VALUES})
    os.truncate(path / "x/0.0", 6 << 30)  # sparse
    with pytest.raises(ValueError, match=r"x/0\.0 has 6,442,450,944 bytes, but the array declares at most"):
        ZarrStore(path).open("x")


def zipped(path: Path, method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    """The store at `path`, with the contents of x/.zarray, x/0.0 or zarr.json replaced."""
    names = {"zarray": "x/.zarray", "chunk": "x/0.0", "group": "zarr.json"}
    members = {names[key]: text for key, text in members.items()}
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", method) as bundle:
        for file in sorted(path.rglob("*")):
            if file.is_file():
                members.setdefault(file.relative_to(path).as_posix(), file.read_bytes())
        for name, text in members.items():
            bundle.writestr(name, text)
    return path.with_suffix(".zip")


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("zarray", "x/.zarray unpacks to 33,566,777 bytes, too many for metadata"),
        ("group", "zarr.json unpacks to 33,566,777 bytes, too many for metadata"),
        ("chunk", "x/0.0 has 33,566,777 bytes, but the array declares at most"),
    ],
)
def test_a_file_in_a_zip_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path, member: str, message: str) -> None:
    refused(zipped(write(tmp_path / "a.zarr", {"x": VALUES}), **{member: BOMB}), message)


def test_a_zip_that_is_packed_in_an_unusual_way_is_refused(tmp_path: Path) -> None:
    path = zipped(write(tmp_path / "a.zarr", {"x": VALUES}), zipfile.ZIP_BZIP2)
    refused(path, "is packed in an unusual way, expected stored or deflated")


@pytest.mark.parametrize("member", ["group", "chunk"])
def test_the_directory_of_a_zip_may_lie(tmp_path: Path, member: str) -> None:
    path = zipped(write(tmp_path / "a.zarr", {"x": VALUES}), **{member: BOMB})
    understate(path, len(BOMB), 80)
    refused(path, "x/0.0 is corrupt|Bad CRC-32")


def understate(path: Path, size: int, said: int) -> None:
    """Replaces the unpacked size in the directory of a zip."""
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    head, directory = content[:at], content[at:]
    path.write_bytes(head + directory.replace(size.to_bytes(4, "little"), said.to_bytes(4, "little")))


def test_arrays_of_others_keep_codecs_without_a_bound(tmp_path):
    """The pipeline serves the whole process, and an environment may read files of its own."""
    texts = zarr.create_array(str(tmp_path / "texts.zarr"), shape=(2,), dtype=str)
    texts[:] = ["left", "right"]
    assert zarr.open_array(str(tmp_path / "texts.zarr"))[:].tolist() == ["left", "right"]

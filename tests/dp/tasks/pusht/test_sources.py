import io
import logging
import re
import shutil
import socket
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dp.tasks.pusht.sources import BUNDLED_PATH, DEFAULT_PATH, download, locate, unpack
from dp.tasks.pusht.store import ReplayBuffer

NAME = DEFAULT_PATH.name
PART = Path("data/pusht.zip.part")
STORE = Path("data") / NAME


class Archive(ThreadingHTTPServer):
    """Serves `payload` at `url`; `ranges` are the Range headers it was sent."""

    payload: bytes
    honours_range = True
    cut: int | None = None  # hang up after so many bytes
    chunked = False  # announce no length, and end without the last chunk
    length: str | None = None  # announced instead of the true one

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.ranges: list[str | None] = []
        self.url = f"http://127.0.0.1:{self.server_port}/pusht.zip"


class Handler(BaseHTTPRequestHandler):
    server: Archive
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        held = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.server.honours_range else 0
        if held >= len(self.server.payload):
            return self.send_error(416)
        body = self.server.payload[held:]
        self.send_response(206 if held else 200)
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"%x\r\n" % len(body) + body
        else:
            self.send_header("Content-Length", self.server.length or str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, payload: bytes) -> Iterator[Archive]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Archive() as server:
        server.payload = payload
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def payload(small_zarr: Path) -> bytes:
    """The small store as an archive like the official one, which has it in a folder."""
    return zipped(lambda bundle: add_store(bundle, small_zarr))


@pytest.fixture(autouse=True)
def cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, so that nothing is found at the default path."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DP_PUSHT_ZARR", raising=False)
    return folder


def zipped(fill: Callable[[zipfile.ZipFile], object]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as bundle:
        fill(bundle)
    return stream.getvalue()


def add_store(bundle: zipfile.ZipFile, store: Path, folder: str = "pusht") -> None:
    for file in sorted(store.rglob("*")):
        if file.is_file():
            bundle.write(file, f"{folder}/{NAME}/{file.relative_to(store)}")


def assert_usable(store: Path, small_zarr: Path) -> None:
    arrays, expected = (ReplayBuffer.load(p, ["img", "state", "action"]).arrays for p in (store, small_zarr))
    for name in expected:
        np.testing.assert_array_equal(arrays[name], expected[name])
    assert [p.name for p in store.parent.iterdir()] == [NAME]  # neither archive nor temporary folder stays


def test_download_gives_a_usable_store(server: Archive, small_zarr: Path) -> None:
    download(server.url, STORE)
    assert_usable(STORE, small_zarr)
    assert server.ranges == [None]


def test_truncated_download_says_what_to_do_and_is_taken_up_where_it_ended(server: Archive, small_zarr: Path) -> None:
    size = len(server.payload)
    server.cut = size // 2
    with pytest.raises(ValueError, match=f"the connection ended after {size // 2} of {size} bytes; run again to cont"):
        download(server.url, STORE)
    assert PART.read_bytes() == server.payload[: size // 2]
    assert not STORE.exists()
    server.cut = 1000
    with pytest.raises(ValueError, match=f"after {size // 2 + 1000} of {size} bytes"):
        download(server.url, STORE)
    server.cut = None
    download(server.url, STORE)
    assert server.ranges == [None, f"bytes={size // 2}-", f"bytes={size // 2 + 1000}-"]
    assert_usable(STORE, small_zarr)


def test_server_that_ignores_range_sends_it_all_again(server: Archive, small_zarr: Path) -> None:
    server.honours_range = False
    PART.parent.mkdir()
    PART.write_bytes(b"x" * 1000)
    server.cut = 500
    with pytest.raises(ValueError, match=f"the connection ended after 500 of {len(server.payload)} bytes"):
        download(server.url, STORE)
    assert PART.read_bytes() == server.payload[:500]
    server.cut = None
    download(server.url, STORE)
    assert server.ranges == ["bytes=1000-", "bytes=500-"]
    assert_usable(STORE, small_zarr)


def test_complete_part_is_unpacked(server: Archive, small_zarr: Path) -> None:
    PART.parent.mkdir()
    PART.write_bytes(server.payload)
    download(server.url, STORE)
    assert_usable(STORE, small_zarr)


def test_broken_chunked_transfer_says_what_to_do(server: Archive) -> None:
    server.chunked, server.cut = True, 5000
    with pytest.raises(ValueError, match=f"no data set at {STORE}, and {server.url} cannot be downloaded"):
        download(server.url, STORE)
    assert not STORE.exists()


def test_a_length_that_is_no_number_is_passed_over(server: Archive, small_zarr: Path) -> None:
    server.length = "abc"
    download(server.url, STORE)
    assert_usable(STORE, small_zarr)


def test_an_archive_that_unpacks_to_too_much_is_refused(small_zarr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dp.tasks.pusht.sources.MAX_UNPACKED_BYTES", 100_000)
    Path("bomb.zip").write_bytes(zipped(lambda bundle: bundle.writestr(f"{NAME}/zeros", bytes(100_001))))
    with pytest.raises(ValueError, match="unpacks to 100,001 bytes, expected at most 100,000"):
        unpack(Path("bomb.zip"), Path(NAME))
    assert [p.name for p in Path().iterdir()] == ["bomb.zip"]


def test_no_network_names_url_target_and_override() -> None:
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/pusht.zip"
        with pytest.raises(ValueError, match="cannot be downloaded") as caught:
            download(url, STORE)
    for part in (url, f"copy the folder {NAME} to {STORE}", "dataset.path=PATH", "DP_PUSHT_ZARR=PATH"):
        assert part in str(caught.value)
    assert not STORE.parent.exists()  # nothing was written


def test_url_without_an_archive_is_named(server: Archive) -> None:
    server.payload = b""  # the handler then answers with an error status to any request
    PART.parent.mkdir()
    PART.write_bytes(b"<html>please log in</html>")
    with pytest.raises(ValueError, match=f"the archive from {server.url} is unusable .*run again"):
        download(server.url, STORE)
    assert not list(Path("data").iterdir())


@pytest.mark.parametrize("at", ["middle", "end"])
def test_corrupt_archive_is_deleted_and_nothing_unpacked(server: Archive, at: str) -> None:
    damaged = bytearray(server.payload)
    where = len(damaged) // 2 if at == "middle" else len(damaged) - 200  # in a picture; in the directory
    damaged[where : where + 100] = bytes(100)
    server.payload = bytes(damaged)
    with pytest.raises(ValueError, match=f"the archive from {server.url} is unusable .* and was deleted: run again"):
        download(server.url, STORE)
    assert not list(Path("data").iterdir())


@pytest.mark.parametrize("kind", ["parent", "nested parent", "absolute", "backslash", "drive", "link"])
def test_member_that_points_outside_is_refused(tmp_path: Path, small_zarr: Path, kind: str) -> None:
    member = zipfile.ZipInfo(
        {
            "parent": "../evil",
            "nested parent": f"pusht/{NAME}/../../../evil",
            "absolute": str(tmp_path / "evil"),
            "backslash": "..\\evil",
            "drive": "C:evil",
            "link": f"pusht/{NAME}/evil",
        }[kind]
    )
    if kind == "link":
        member.external_attr = (stat.S_IFLNK | 0o777) << 16

    def fill(bundle: zipfile.ZipFile) -> None:
        add_store(bundle, small_zarr)
        bundle.writestr(member, str(tmp_path))

    Path("evil.zip").write_bytes(zipped(fill))
    with pytest.raises(ValueError, match=f"member {re.escape(repr(member.filename))} (points outside|is a link)"):
        unpack(Path("evil.zip"), Path(NAME))
    assert [p.name for p in Path().iterdir()] == ["evil.zip"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cwd"]


def test_archive_of_something_else_is_refused(small_zarr: Path) -> None:
    Path("other.zip").write_bytes(zipped(lambda bundle: bundle.writestr("readme.txt", "hello")))
    with pytest.raises(ValueError, match=f"it holds 0 folders named {NAME}, expected one"):
        unpack(Path("other.zip"), Path(NAME))

    def twice(bundle: zipfile.ZipFile) -> None:
        add_store(bundle, small_zarr, "one")
        add_store(bundle, small_zarr, "two")

    Path("other.zip").write_bytes(zipped(twice))
    with pytest.raises(ValueError, match=f"it holds 2 folders named {NAME}, expected one"):
        unpack(Path("other.zip"), Path(NAME))
    assert [p.name for p in Path().iterdir()] == ["other.zip"]


def test_locate_prefers_the_path_then_the_variable_then_the_default_then_downloads(
    server: Archive, small_zarr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("mine").mkdir()
    Path("variable").mkdir()
    monkeypatch.setenv("DP_PUSHT_ZARR", "variable")
    assert locate("auto", "mine", server.url) == Path("mine")
    assert locate("auto", None, server.url) == Path("variable")
    monkeypatch.delenv("DP_PUSHT_ZARR")
    assert locate("official", None, server.url) == DEFAULT_PATH
    assert_usable(DEFAULT_PATH, small_zarr)
    assert locate("auto", None, server.url) == DEFAULT_PATH
    assert len(server.ranges) == 1  # the second time it was there
    monkeypatch.setenv("DP_PUSHT_ZARR", "variable")
    assert locate("auto", None, server.url) == Path("variable")


def test_locate_expands_the_home_folder(small_zarr: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(small_zarr, tmp_path / "store")
    assert locate("auto", "~/store") == tmp_path / "store"


def test_locate_knows_the_included_demonstrations_among_paths() -> None:
    assert locate("auto", "bundled") == BUNDLED_PATH


def test_locate_names_a_path_without_data_and_an_unknown_source(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"dataset\.path=nowhere: there is no data set there"):
        locate("auto", "nowhere")
    with pytest.raises(ValueError, match=r"dataset\.source=mars, expected one of: auto, official"):
        locate("mars", None)
    monkeypatch.setenv("DP_PUSHT_ZARR", "gone")
    with pytest.raises(ValueError, match="DP_PUSHT_ZARR=gone: there is no data set there"):
        locate("auto", None)


UNREACHABLE = "http://127.0.0.1:9/pusht.zip"


def test_without_the_official_data_and_a_network_auto_is_bundled_and_says_so(
    small_zarr: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dp.tasks.pusht.sources.BUNDLED_PATH", small_zarr)
    with caplog.at_level(logging.WARNING):
        assert locate("auto", None, UNREACHABLE) == small_zarr
    assert "not comparable" in caplog.text
    with pytest.raises(ValueError, match="cannot be downloaded"):
        locate("official", None, UNREACHABLE)
    monkeypatch.setattr("dp.tasks.pusht.sources.BUNDLED_PATH", Path("nowhere"))
    with pytest.raises(ValueError, match="cannot be downloaded"):
        locate("auto", None, UNREACHABLE)


def test_bundled_is_taken_only_where_it_is_asked_for_or_nothing_else_is_there(
    small_zarr: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("variable").mkdir()
    monkeypatch.setenv("DP_PUSHT_ZARR", "variable")
    monkeypatch.setattr("dp.tasks.pusht.sources.BUNDLED_PATH", small_zarr)
    assert locate("bundled", None) == small_zarr
    assert locate("auto", None) == Path("variable")
    monkeypatch.setattr("dp.tasks.pusht.sources.BUNDLED_PATH", Path("nowhere"))
    with pytest.raises(ValueError, match=r"dataset.source=bundled .nowhere.: there is no data set there"):
        locate("bundled", None)

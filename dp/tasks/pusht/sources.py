"""Sources of demonstrations: a path, a download of the official archive, or this package."""

import http.client
import logging
import os
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

log = logging.getLogger(__name__)

SOURCES = ("auto", "official", "bundled")
DEFAULT_PATH = Path("data/pusht/pusht_cchi_v7_replay.zarr")
BUNDLED_PATH = Path(__file__).parent / "bundled" / "pusht.zarr"
"""Demonstrations of the project's own planner, which come with the package."""

ARCHIVE_URL = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"
"""Published by the paper's authors without a checksum: every member's CRC, and then every array, is checked instead."""

OFFICIAL_SHA256 = (
    "9938fed27c72ffeafb77dd301ce22f8bc5573f0691bf28ee77ac17895bb648fe",  # states and actions
    "145ada964161c4bb54cc534160453963d4f3d000ae250267046a94c0f5b4089c",  # and images
)
"""`ReplayBuffer.sha256` of the official demonstrations, which `workspace=inspect` compares: chunks have no checksum."""

TIMEOUT_S = 20

MAX_UNPACKED_BYTES = 2**30
"""Largest size of what an archive unpacks to. The official one unpacks to 340 MB."""


class Unreachable(ValueError):
    """The official demonstrations are not here and cannot be downloaded."""


def locate(source: str, path: str | None, url: str = ARCHIVE_URL) -> Path:
    """The zarr store to read: `path` if given, which may be official or bundled, too, else what `source` names.

    official: $DP_PUSHT_ZARR, else `DEFAULT_PATH`, else a download to it. bundled: `BUNDLED_PATH`. auto: official, or
        bundled, with a warning, if it is not available.

    Raises ValueError for an unknown source, a path without a store, and unavailable data.
    """
    if source not in SOURCES:
        raise ValueError(f"dataset.source={source}, expected one of: {', '.join(SOURCES)}")
    if path in ("official", "bundled"):
        return locate(path, None, url)
    if path is not None:
        return _existing(f"dataset.path={path}", path)
    if source == "bundled":
        return _existing(f"dataset.source=bundled ({BUNDLED_PATH})", str(BUNDLED_PATH))
    try:
        return _official(url)
    except Unreachable as error:
        if source == "official" or not BUNDLED_PATH.is_dir():
            raise
        log.warning(
            "WARNING: training on the bundled demonstrations of a planner. Scores are not comparable with those on "
            "the official ones: %s (dataset.source=bundled silences this)",
            error,
        )
        return BUNDLED_PATH


def _existing(said: str, path: str) -> Path:
    found = Path(path).expanduser()
    if not found.exists():
        raise ValueError(f"{said}: there is no data set there")
    return found


def _official(url: str) -> Path:
    if given := os.environ.get("DP_PUSHT_ZARR"):
        return _existing(f"DP_PUSHT_ZARR={given}", given)
    if not DEFAULT_PATH.is_dir():
        download(url, DEFAULT_PATH)
    return DEFAULT_PATH


def download(url: str, store: Path) -> None:
    """Fetches the archive at `url` and unpacks the zarr store in it to `store`.

    The store appears under its name only when it is complete. A broken download continues where it ended.
    Raises Unreachable if there is no network or no such archive, and ValueError for one that is not usable, saying
    what to do.
    """
    archive = store.parent / f"{url.rsplit('/', 1)[-1]}.part"
    log.info("downloading the official demonstrations from %s", url)
    try:
        _fetch(url, archive)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"no data set at {store}, and {url} cannot be downloaded ({error}). Fetch it on another machine, unpack it "
            f"there, and copy the folder {store.name} to {store}, or set dataset.path=PATH or DP_PUSHT_ZARR=PATH."
        ) from error
    try:
        unpack(archive, store)
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, RuntimeError) as error:
        archive.unlink()
        raise ValueError(f"the archive from {url} is unusable ({error}) and was deleted: run again") from error
    archive.unlink()


def _fetch(url: str, file: Path) -> None:
    """Downloads to `file`, continuing what it already holds.

    By hand, because pooch cannot continue, and huggingface_hub can but retries for a minute without a network.
    """
    held = file.stat().st_size if file.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send: the last attempt ended between download and unpacking
            return
        raise
    with response:
        resumed = response.status == 206
        held = held if resumed else 0
        file.parent.mkdir(parents=True, exist_ok=True)  # not before the server has answered
        length = response.headers.get("Content-Length", "")
        expected = held + int(length) if length.isdecimal() else None
        with (
            file.open("ab" if resumed else "wb") as out,
            tqdm(total=expected, initial=held, unit="B", unit_scale=True, desc=file.stem) as bar,
        ):
            while block := response.read(1 << 20):
                out.write(block)
                bar.update(len(block))
    if expected is not None and file.stat().st_size != expected:
        raise OSError(f"the connection ended after {file.stat().st_size} of {expected} bytes; run again to continue")


def unpack(archive: Path, store: Path) -> None:
    """Takes the folder named `store.name` out of the zip file, wherever it lies in it.

    Raises ValueError for members that would land outside the folder, for links, for more than `MAX_UNPACKED_BYTES`,
    and if there is no such folder.
    """
    temporary = store.with_name(f"{store.name}.{os.getpid()}.tmp")
    try:
        with zipfile.ZipFile(archive) as bundle:
            for member in bundle.infolist():
                _check_member(member)
            size = sum(member.file_size for member in bundle.infolist())  # more than this is never written
            if size > MAX_UNPACKED_BYTES:
                raise ValueError(f"it unpacks to {size:,} bytes, expected at most {MAX_UNPACKED_BYTES:,}")
            folders = {
                PurePosixPath(*parts[: parts.index(store.name)])
                for parts in (PurePosixPath(name).parts for name in bundle.namelist())
                if store.name in parts
            }
            if len(folders) != 1:
                raise ValueError(f"it holds {len(folders)} folders named {store.name}, expected one")
            bundle.extractall(temporary)
        (temporary / folders.pop() / store.name).rename(store)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_member(member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
        raise ValueError(f"its member {member.filename!r} points outside the archive")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"its member {member.filename!r} is a link")

"""File formats of episodes. One file each."""

from pathlib import Path

from dp.data.formats.store import Store

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

NAMES = {"zarr": "a zarr store", "lerobot": "a LeRobot data set", "robomimic": "an HDF5 file of robomimic's"}
"""Words for each choice of `dataset=`."""


def choice_of(path: Path) -> str:
    """The choice of `dataset=` that reads what lies at `path`, by its content: lerobot, robomimic, or else zarr."""
    if (path / "meta/info.json").exists():
        return "lerobot"
    if path.is_file():
        with path.open("rb") as file:
            return "robomimic" if file.read(len(HDF5_MAGIC)) == HDF5_MAGIC else "zarr"
    return "zarr"


def open_store(path: Path) -> Store:
    """Opens a data set of any format. Raises ValueError if there is none, or the package that reads it is missing."""
    kind = choice_of(path)
    try:
        if kind == "lerobot":
            from dp.data.formats.lerobot import LeRobotStore

            return LeRobotStore(path)
        if kind == "robomimic":
            from dp.data.formats.hdf5 import Hdf5Store

            return Hdf5Store(path)
    except ModuleNotFoundError as error:
        raise missing(kind, error) from error
    from dp.data.formats.zarr import ZarrStore

    return ZarrStore(path)


def missing(kind: str, error: ModuleNotFoundError) -> ValueError:
    """The error for a user who lacks the package that reads a format."""
    return ValueError(f"{NAMES[kind]} needs {error.name}: pip install -e '.[{kind}]'")

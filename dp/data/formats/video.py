"""Frames of a video file, one after the other, each of the declared size."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from dp.data.formats.memory import limited
from dp.data.formats.store import check_ordinary, first_line

CONTAINER = "mp4"
"""The only container that is opened. FFmpeg would follow a playlist to other files, and to addresses."""

CODECS = ("av1", "libdav1d", "libaom-av1", "h264", "hevc", "vp9", "libvpx-vp9", "mpeg4")
"""Codecs that LeRobot writes, by the names of their decoders."""


def frames(
    path: Path, height: int, width: int, fps: float, what: str
) -> Iterator[tuple[int, UInt8[np.ndarray, "height width 3"]]]:
    """Yields (number, image) of each frame, as displayed. The number is the frame's time in units of 1 / fps.

    what: name of the images, for messages. Raises ValueError for a file that is no such video, or that holds frames of
    another size.
    """
    check_ordinary(path)
    most = 2 * (height + 64) * (width + 64)  # codecs work on whole blocks of pixels
    with path.open("rb") as file, _open(file, path, most) as container:
        stream = _stream(container, path)
        decoded = container.decode(stream)
        while (frame := _next(decoded, path)) is not None:
            if (frame.height, frame.width) != (height, width):
                raise ValueError(
                    f"{path} has frames of {frame.height} x {frame.width} pixels, but {what} declares {height} x "
                    f"{width}"
                )
            yield round((frame.time or 0) * fps), frame.to_ndarray(format="rgb24")


def _open(file: Any, path: Path, max_pixels: int) -> Any:
    with limited(path):
        try:
            return av.open(file, format=CONTAINER, options={"max_pixels": str(max_pixels)})
        except MemoryError:
            raise
        except (av.FFmpegError, OSError, ValueError) as error:
            raise ValueError(f"cannot read {path} as an mp4 video: {first_line(error)}") from error


def _stream(container: Any, path: Path) -> Any:
    if len(container.streams.video) != 1:
        raise ValueError(f"{path} has {len(container.streams.video)} video streams, expected one")
    stream = container.streams.video[0]
    if stream.codec_context.name not in CODECS:
        raise ValueError(f"{path} is encoded with {stream.codec_context.name}, expected one of {', '.join(CODECS)}")
    return stream


def _next(decoded: Iterator[Any], path: Path) -> Any:
    with limited(path):
        try:
            return next(decoded, None)
        except MemoryError:
            raise
        except (av.FFmpegError, OSError) as error:
            raise ValueError(
                f"{path} is damaged, or has frames of another size than declared: {first_line(error)}"
            ) from error

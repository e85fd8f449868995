"""Writes rollouts as H.264 videos."""

from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from dp.rollouts.runner import EpisodeResult

MARGIN = 32
"""Height in pixels of the strip for text above the picture."""


def write_video(path: Path, episode: EpisodeResult) -> None:
    """Writes the frames of `episode` as mp4 in real time, below a line of text: step, reward, best so far."""
    import av

    frames = annotate(episode)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    with av.open(str(temporary), "w") as container:
        rate = Fraction(episode.control_hz).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)


def annotate(episode: EpisodeResult) -> list[UInt8[np.ndarray, "Y X 3"]]:
    """The frames with a margin above each that shows step and reward."""
    longest = f"seed {episode.seed}   step {len(episode.frames)}   reward -0.00   best -0.00"
    font = ImageFont.load_default(size=16)
    if episode.frames and (too_long := font.getlength(longest) / (episode.frames[0].shape[1] - 16)) > 1:
        font = ImageFont.load_default(size=16 / too_long)
    rewards = [0.0, *episode.rewards]
    annotated = []
    for step, frame in enumerate(episode.frames):
        height, width = frame.shape[:2]
        # A white margin above the frame holds the text.
        even = (width + width % 2, height + height % 2 + MARGIN)  # as video codecs need
        canvas = Image.new("RGB", even, "white")
        canvas.paste(Image.fromarray(frame), (0, MARGIN))
        best = max(rewards[1 : step + 1], default=rewards[0])
        text = f"seed {episode.seed}   step {step}   reward {rewards[step]:.2f}   best {best:.2f}"
        ImageDraw.Draw(canvas).text((8, 7), text, fill="black", font=font)
        annotated.append(np.asarray(canvas))
    return annotated

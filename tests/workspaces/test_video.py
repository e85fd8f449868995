"""Videos are H.264, of every frame, with the text outside the picture."""

import av
import numpy as np

from dp.rollouts.runner import EpisodeResult
from workspaces.video import MARGIN, annotate, write_video


def _episode() -> EpisodeResult:
    frames = [np.full((384, 384, 3), 10 * i, np.uint8) for i in range(6)]
    return EpisodeResult(seed=7, max_reward=0.5, control_hz=12.5, rewards=[0.1, 0.2, 0.5, 0.3, 0.3], frames=frames)


def test_a_video_is_h264_and_holds_every_frame(tmp_path):
    write_video(tmp_path / "media/1-7.mp4", _episode())
    with av.open(str(tmp_path / "media/1-7.mp4")) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert stream.codec_context.name == "h264"
    assert float(stream.average_rate) == 12.5
    assert len(frames) == 6
    assert [p.name for p in (tmp_path / "media").iterdir()] == ["1-7.mp4"]
    assert abs(float(frames[3][MARGIN + 8 :].mean()) - 30) < 4


def test_the_text_is_outside_the_picture_and_changes(tmp_path):
    frames = annotate(_episode())
    for original, annotated in zip(_episode().frames, frames, strict=True):
        assert np.array_equal(annotated[MARGIN:], original)
    assert not np.array_equal(frames[1][:MARGIN], frames[2][:MARGIN])
    assert (frames[1][:MARGIN] < 128).any()

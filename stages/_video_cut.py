"""Decode a stretch of a video once and cut it into segments."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from winnow.stages._audio import encode_audio
from winnow.stages._video import (
    VideoError,
    VideoRef,
    opened,
    picture_stream,
    sound_stream,
    start_s,
)

SILENCE_DBFS = -120.0
_PREVIEW = 32
_MAX_DAMAGED = 100
"""Packets after each other that do not decode before the rest is given up."""
_SLACK_S = 1e-6
STRETCH_S = 20.0
"""Decoding begins at multiples of this, whichever segments are asked for: what a decoder gives
depends on where it began."""
_LEAD_IN_S = 0.5
"""Sound is decoded from so long before the first segment: codecs need packets to settle."""

Grey = npt.NDArray[np.int16]
Sound = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class CutOptions:
    """See the parameters of the stage video_segment."""

    num_frames: int
    quality: int
    max_side: int | None


@dataclass(kw_only=True, slots=True)
class Segment:
    """What a segment holds; see the columns of the stage video_segment.

    pictures: JPEGs, the middle one first, then those of ``num_frames`` parts; [] = none is shown.
    code: why its part of the file cannot be read; None where it can.
    """

    start_s: float
    end_s: float
    pictures: list[bytes] = field(default_factory=list)
    sound: bytes | None = None
    num_frames: int = 0
    motion: float = 0.0
    rms_dbfs: float | None = None
    first_grey: Grey | None = None
    code: str | None = None

    def wanted(self, num_frames: int) -> list[float]:
        """Return the times of the pictures, in the order of ``pictures``."""
        parts = num_frames if num_frames > 1 else 0
        length = self.end_s - self.start_s
        times = [(2 * part + 1) / (2 * parts) for part in range(parts)]
        return [self.start_s + length * share for share in (0.5, *times)]


def cut(ref: VideoRef, spans: Sequence[tuple[float, float]], options: CutOptions) -> list[Segment]:
    """Return a segment per span (start and end in seconds of the file), in the order of spans."""
    segments = [Segment(start_s=start, end_s=end) for start, end in spans]
    stretches: dict[int, list[Segment]] = {}
    for segment in sorted(segments, key=lambda s: (s.start_s, s.end_s)):
        stretches.setdefault(int(segment.start_s // STRETCH_S), []).append(segment)
    for number, stretch in stretches.items():
        try:
            _cut_stretch(ref, number * STRETCH_S, stretch, options)
        except VideoError as error:
            for segment in stretch:
                segment.code = error.code
    return segments


def _cut_stretch(
    ref: VideoRef, begin_s: float, segments: Sequence[Segment], options: CutOptions
) -> None:
    with opened(ref) as container:
        _cut_pictures(container, begin_s, segments, options)
    with opened(ref) as container:
        if sound_stream(container) is not None:
            _cut_sound(container, begin_s, segments)


def _cut_pictures(
    container: Any, begin_s: float, segments: Sequence[Segment], options: CutOptions
) -> None:
    """Fill in what is seen. A frame is shown from its time stamp to that of the next one."""
    stream = picture_stream(container)
    stream.thread_type = "NONE"  # so that damaged packets end the same way every time
    zero, last_s = start_s(container), max(segment.end_s for segment in segments)
    _seek(container, stream, begin_s + zero)
    before: tuple[float, Any] | None = None
    for frame in _frames(container, stream):
        if frame.time is None:
            continue
        now = frame.time - zero
        if before is not None:
            _show(before[1], before[0], now, segments, options)
        if now >= last_s:
            return
        before = (now, frame)
    if before is None:
        raise VideoError(code="undecodable")
    _show(before[1], before[0], float("inf"), segments, options)


def _show(
    frame: Any, start: float, stop: float, segments: Sequence[Segment], options: CutOptions
) -> None:
    """Give a frame, shown from ``start`` to ``stop``, to the segments that it is seen in."""
    grey: Grey | None = None
    jpeg: bytes | None = None
    for segment in segments:
        if segment.start_s >= stop or segment.end_s <= start + _SLACK_S:
            continue
        if grey is None:
            small = frame.reformat(width=_PREVIEW, height=_PREVIEW, format="gray", threads=1)
            grey = small.to_ndarray().astype(np.int16)
        segment.num_frames += int(start >= segment.start_s - _SLACK_S)
        if segment.first_grey is None:
            segment.first_grey = grey
        moved = float(np.abs(grey - segment.first_grey).mean())
        segment.motion = max(segment.motion, moved)
        times = segment.wanted(options.num_frames)
        for place, time in enumerate(times):
            if start <= time < stop or (place >= len(segment.pictures) and start > time):
                jpeg = jpeg or _jpeg(frame, options)
                _put(segment.pictures, place, jpeg)


def _put(pictures: list[bytes], place: int, jpeg: bytes) -> None:
    """Set a picture; those that are missing before it (the video begins late) are the same."""
    while len(pictures) <= place:
        pictures.append(jpeg)
    pictures[place] = jpeg


def _jpeg(frame: Any, options: CutOptions) -> bytes:
    image: Image.Image = frame.to_image()
    if options.max_side is not None and max(image.size) > options.max_side:
        image.thumbnail((options.max_side, options.max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=options.quality)
    return out.getvalue()


def _cut_sound(container: Any, begin_s: float, segments: Sequence[Segment]) -> None:
    """Fill in what is heard."""
    stream = sound_stream(container)
    zero, last_s = start_s(container), max(segment.end_s for segment in segments)
    _seek(container, stream, max(0.0, begin_s - _LEAD_IN_S) + zero)
    rate = stream.codec_context.sample_rate
    num_channels = stream.codec_context.channels
    if not rate or not num_channels:
        return
    total = max(1, round((last_s - begin_s) * rate))
    samples_CN = np.zeros((num_channels, total), np.float32)
    heard = np.zeros(total, bool)
    resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=rate)
    for frame in _frames(container, stream):
        if frame.time is None:
            continue
        at = round((frame.time - zero - begin_s) * rate)
        if at >= total:
            break
        if frame.sample_rate != rate or len(frame.layout.channels) != num_channels:
            continue
        for part in resampler.resample(frame):
            _place(samples_CN, heard, part.to_ndarray().astype(np.float32), at)
    for segment in segments:
        low = round((segment.start_s - begin_s) * rate)
        high = max(low + 1, round((segment.end_s - begin_s) * rate))
        if heard[low:high].any():
            part_CN = samples_CN[:, low:high]
            segment.sound = encode_audio(part_CN, rate, "flac")
            mean = float(np.mean(np.square(part_CN, dtype=np.float64)))
            segment.rms_dbfs = max(SILENCE_DBFS, 10 * np.log10(max(mean, 1e-12)))


def _place(samples_CN: Sound, heard: npt.NDArray[np.bool_], part_CN: Sound, at: int) -> None:
    low, high = max(at, 0), min(at + part_CN.shape[1], samples_CN.shape[1])
    if low < high:
        samples_CN[:, low:high] = part_CN[:, low - at : high - at]
        heard[low:high] = True


def _seek(container: Any, stream: Any, time_s: float) -> None:
    """Go to the key frame before a time; files that cannot be searched stay at the beginning."""
    try:
        container.seek(int(time_s / stream.time_base), stream=stream, backward=True)
    except av.FFmpegError:
        container.seek(0)


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Yield decoded frames; damaged packets are left out, up to _MAX_DAMAGED after each other."""
    damaged = 0
    packets = container.demux(stream)
    while damaged <= _MAX_DAMAGED:
        try:
            packet = next(packets)
            frames = packet.decode()
        except StopIteration:
            return
        except av.FFmpegError:
            damaged += 1
            continue
        for frame in frames:
            damaged = 0
            yield frame

"""Decode a stretch of a video once and cut it into segments."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from winnow.stages._audio import encode_audio
from winnow.stages._video import (
    HOSTILE_VIDEO,
    MAX_PIXELS,
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
_LEADS_S = (0.0, 5.0, 30.0)
"""So long before its place a stretch is searched for; then the file is read from its beginning.
MPEG streams have no index: a search ends near a place, before or after it, at any frame."""
_LEAD_IN_S = 0.5
"""Sound is decoded from so long before the first segment: codecs need packets to settle."""
_MAX_CHANNELS = 8
_MAX_RATE = 655_350
"""What FLAC holds."""

_TURNS = {
    1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""Quarter turns against the clock, by the file's display matrix: films of telephones have one."""

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
            _cut_pictures(ref, number * STRETCH_S, stretch, options)
            _cut_sound(ref, number * STRETCH_S, stretch)
        except VideoError as error:
            code = error.code
        except HOSTILE_VIDEO:
            code = "undecodable"
        else:
            continue
        for segment in stretch:
            segment.code = code
    return segments


def _cut_pictures(
    ref: VideoRef, begin_s: float, segments: Sequence[Segment], options: CutOptions
) -> None:
    """Fill in what is seen. A frame is shown from its time stamp to that of the next one."""
    last_s = max(segment.end_s for segment in segments)
    before: tuple[float, Any] | None = None
    for now, frame in _frames_from(ref, begin_s, picture_stream):
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
    turned = _TURNS.get(round(frame.rotation / 90) % 4)
    if turned is not None:
        image = image.transpose(turned)
    if options.max_side is not None and max(image.size) > options.max_side:
        image.thumbnail((options.max_side, options.max_side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=options.quality)
    return out.getvalue()


def _cut_sound(ref: VideoRef, begin_s: float, segments: Sequence[Segment]) -> None:
    """Fill in what is heard."""
    last_s = max(segment.end_s for segment in segments)
    with opened(ref) as container:
        stream = sound_stream(container)
        if stream is None:
            return
        context = stream.codec_context
        rate, num_channels, layout = context.sample_rate, context.channels, context.layout
    if not 0 < rate <= _MAX_RATE or not num_channels:
        return
    total = max(1, round((last_s - begin_s) * rate))
    samples_CN = np.zeros((num_channels if num_channels <= _MAX_CHANNELS else 1, total), np.float32)
    heard = np.zeros(total, bool)
    # Not planar: PyAV reads beyond the list of planes where there are more than eight.
    resampler = av.AudioResampler(format="flt", layout=layout, rate=rate)
    for time, frame in _frames_from(ref, begin_s, sound_stream, lead_in_s=_LEAD_IN_S):
        at = round((time - begin_s) * rate)
        if at >= total:
            break
        if frame.sample_rate != rate or frame.layout.nb_channels != num_channels:
            continue
        for part in resampler.resample(frame):
            part_CN = part.to_ndarray().astype(np.float32).reshape(-1, num_channels).T
            if num_channels > _MAX_CHANNELS:
                part_CN = part_CN.mean(0, dtype=np.float32, keepdims=True)
            _place(samples_CN, heard, np.nan_to_num(part_CN, posinf=0.0, neginf=0.0), at)
    for segment in segments:
        low = round((segment.start_s - begin_s) * rate)
        high = max(low + 1, round((segment.end_s - begin_s) * rate))
        if heard[low:high].any():
            own_CN = samples_CN[:, low:high]
            segment.sound = encode_audio(own_CN, rate, "flac")
            mean = float(np.mean(np.square(own_CN, dtype=np.float64)))
            segment.rms_dbfs = max(SILENCE_DBFS, 10 * np.log10(max(mean, 1e-12)))


def _place(samples_CN: Sound, heard: npt.NDArray[np.bool_], part_CN: Sound, at: int) -> None:
    low, high = max(at, 0), min(at + part_CN.shape[1], samples_CN.shape[1])
    if low < high:
        samples_CN[:, low:high] = part_CN[:, low - at : high - at]
        heard[low:high] = True


def _frames_from(
    ref: VideoRef, begin_s: float, pick: Callable[[Any], Any], *, lead_in_s: float = 0.0
) -> Iterator[tuple[float, Any]]:
    """Yield the frames of a stream with their times, from the one that is shown at ``begin_s`` or
    an earlier one; from the first one where there is none so early."""
    for lead_s in _LEADS_S:
        place_s = begin_s - lead_in_s - lead_s
        if place_s <= 0:
            break
        with opened(ref) as container:
            stream = pick(container)
            if not _seek(container, stream, place_s + start_s(container)):
                break
            frames = _timed(container, stream, from_key=True)
            first = next(frames, None)
            if first is not None and first[0] <= begin_s:
                yield first
                yield from frames
                return
    with opened(ref) as container:
        yield from _timed(container, pick(container), from_key=False)


def _seek(container: Any, stream: Any, time_s: float) -> bool:
    """Go to a place before a time; return whether the file could be searched."""
    try:
        container.seek(int(time_s / stream.time_base), stream=stream, backward=True)
    except av.FFmpegError:
        return False
    return True


def _timed(container: Any, stream: Any, *, from_key: bool) -> Iterator[tuple[float, Any]]:
    """Yield decoded frames and their times in seconds of the file, in order of time.

    AVI has no time stamps but the order of its packets: FFmpeg's guesses go back and forth.
    """
    stream.thread_type = "NONE"  # so that damaged packets end the same way every time
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    zero, by_packets = start_s(container), container.format.name == "avi"
    for frame in _frames(container, stream, from_key=from_key):
        stamp = frame.dts if by_packets and frame.dts is not None else frame.pts
        if stamp is not None:
            yield float(stamp * frame.time_base) - zero, frame


def _frames(container: Any, stream: Any, *, from_key: bool) -> Iterator[Any]:
    """Yield decoded frames; damaged packets are left out, up to _MAX_DAMAGED after each other.

    from_key: leave out what comes before the first key frame.
    """
    damaged = 0
    packets = container.demux(stream)
    while damaged <= _MAX_DAMAGED:
        try:
            packet = next(packets)
            if from_key and packet.size and not packet.is_keyframe:
                continue
            from_key = False
            frames = packet.decode()
        except StopIteration:
            return
        except av.FFmpegError:
            damaged += 1
            continue
        for frame in frames:
            damaged = 0
            yield frame

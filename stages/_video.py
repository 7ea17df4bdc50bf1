"""Video files that lie in files: opened by reference, with named demuxers, read packet by packet.

A file may be larger than memory, so it is never read into it: FFmpeg reads through a window on the
open file. FFmpeg is told the format, which is read from the first bytes, and never guesses one:
among the formats that it would guess are lists that name other files and addresses.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import av
from av.container import InputContainer

from winnow.contracts.media import MediaCaps
from winnow.stages._audio_container import HOSTILE_AUDIO
from winnow.stages._audio_headers import MP4_COUNTING, mp4_box, mp4_counts_are_possible
from winnow.stages.sources._files import open_file
from winnow.stages.sources._media_refs import digest_of

VIDEO_EXTENSIONS = (
    *("mp4", "m4v", "mov", "mkv", "webm", "avi", "ogv", "mpg", "mpeg", "ts", "m2ts", "flv", "3gp"),
)
HOSTILE_VIDEO = HOSTILE_AUDIO
"""What PyAV may raise on bytes made to hurt."""
SECOND = 1_000_000
"""FFmpeg's clock of a whole file (AV_TIME_BASE), in units per second."""
_HEAD_BYTES = 400
_CHUNK = 1 << 20
_TS_PACKET = 188
MAX_PIXELS = MediaCaps().max_pixels
"""Of a frame, as of a picture; a larger one does not decode."""
_MAX_BOXES, _MAX_BOX_BYTES = 1_000_000, 256 << 20
_OPTIONS = {"enable_drefs": "0", "use_absolute_path": "0"}
"""Of the mov demuxer: tracks that lie in other files stay closed (both are its defaults too)."""


class VideoError(Exception):
    """Why a video cannot be read.

    code: missing, unreadable, changed, undecodable or no_video; what its rows get.
    """

    def __init__(self, *, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRef:
    """Where the bytes of a video are: the fields of MEDIA_REF."""

    path: str
    offset: int
    length: int
    digest: bytes

    @classmethod
    def of(cls, value: Mapping[str, Any] | None) -> VideoRef:
        """Return the reference of a row; VideoError "missing" where it has none."""
        if value is None or value["path"] is None:
            raise VideoError(code="missing")
        return cls(**value)


def video_format(head: bytes) -> str | None:
    """Return FFmpeg's name of the demuxer for a file with these first bytes, None for no video."""
    if head[4:8] == b"ftyp" or head[4:8] in (b"moov", b"wide", b"mdat"):
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    starts = {
        b"\x1a\x45\xdf\xa3": "matroska", b"OggS": "ogg", b"FLV\x01": "flv",
        b"\x00\x00\x01\xba": "mpeg",
    }  # fmt: skip
    if head[:4] in starts:
        return starts[head[:4]]
    marks = (0, 4)  # plain packets, and those with a time stamp before each (m2ts)
    for first in marks:
        step = _TS_PACKET + first
        if len(head) > first + step and head[first] == head[first + step] == 0x47:
            return "mpegts"
    return None


class Window(io.RawIOBase):
    """A part of an open file as a file of its own; closing it closes the file."""

    def __init__(self, stream: BinaryIO, offset: int, length: int) -> None:
        self._stream, self._offset, self._length, self._at = stream, offset, length, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the part."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """Return the place in the part."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Return up to ``size`` bytes, b"" at the end of the part."""
        left = max(0, self._length - self._at)
        self._stream.seek(self._offset + self._at)
        data = self._stream.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()


def check_digest(ref: VideoRef) -> None:
    """Raise VideoError unless the bytes still have the digest with which they were found."""
    try:
        with Window(open_file(ref.path), ref.offset, ref.length) as window:
            _, digest = digest_of(iter(partial(window.read, _CHUNK), b""))
    except OSError as error:
        raise VideoError(code="unreadable") from error
    if digest != ref.digest:
        raise VideoError(code="changed")


@contextmanager
def opened(ref: VideoRef) -> Iterator[InputContainer]:
    """Open a video; VideoError "unreadable", "undecodable" or "no_video" from the block too."""
    try:
        stream = open_file(ref.path)
    except OSError as error:
        raise VideoError(code="unreadable") from error
    with Window(stream, ref.offset, ref.length) as window:
        name = video_format(window.read(_HEAD_BYTES))
        window.seek(0)
        if name is None:
            raise VideoError(code="undecodable")
        options = _OPTIONS if name == "mov" else {}
        try:
            if name == "mov" and not _tables_are_possible(window, ref.length):
                raise VideoError(code="undecodable")
            window.seek(0)
            with av.open(
                window, "r", format=name, options=options, metadata_errors="replace",
                io_open=_refuse,
            ) as container:  # fmt: skip
                if picture_stream(container) is None:
                    raise VideoError(code="no_video")
                yield container
        except av.FFmpegError as error:
            raise VideoError(code="undecodable") from error
        except OSError as error:
            raise VideoError(code="unreadable") from error
        except HOSTILE_VIDEO as error:
            raise VideoError(code="undecodable") from error


def _tables_are_possible(window: Window, length: int) -> bool:
    """Return whether no table of an mp4 promises more samples than the file could hold.

    Each takes memory as soon as the file is open. Other boxes, such as the media, are passed over.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        window.seek(at)
        head = window.read(16)
        if len(head) < 8:
            return True
        name, _, size = mp4_box(head, length - at)
        if name in MP4_COUNTING:
            window.seek(at)
            box = window.read(min(size, _MAX_BOX_BYTES + 1))
            if len(box) > _MAX_BOX_BYTES or not mp4_counts_are_possible(box, length):
                return False
        at += size
    return False


def _refuse(url: str, flags: int, options: dict[str, str]) -> None:
    msg = "a video may not open another file"
    raise PermissionError(msg)


def picture_stream(container: InputContainer) -> Any:
    """Return the first stream of moving pictures, None where there are only covers, or none."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    return None


def sound_stream(container: InputContainer) -> Any:
    """Return the first audio stream, None where there is none."""
    return next(iter(container.streams.audio), None)


def start_s(container: InputContainer) -> float:
    """Return the time stamp, in seconds, that is 0 s of the file: its earliest stream's."""
    return (container.start_time or 0) / SECOND


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """From when to when a stream lasts, in seconds on its file's clock.

    samples_s: for audio, the length by the packets' own durations, without the gaps between them.
    """

    first_s: float
    last_s: float
    samples_s: float


def extents(container: InputContainer) -> dict[int, Extent]:
    """Return index -> extent of the picture and sound streams, from all packets; none is decoded.

    A header may lie about lengths; packets that are there do not.
    """
    wanted = [s for s in (picture_stream(container), sound_stream(container)) if s is not None]
    found: dict[int, Extent] = {}
    for packet in container.demux(wanted):
        if packet.pts is None or packet.time_base is None:
            continue
        start = float(packet.pts * packet.time_base)
        length = float((packet.duration or 0) * packet.time_base)
        known = found.get(packet.stream_index) or Extent(first_s=start, last_s=start, samples_s=0.0)
        found[packet.stream_index] = Extent(
            first_s=min(known.first_s, start),
            last_s=max(known.last_s, start + length),
            samples_s=known.samples_s + length,
        )
    return found

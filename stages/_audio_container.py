"""Open audio files from bytes in memory with one white-listed FFmpeg demuxer, and nothing else."""

from __future__ import annotations

import io
import struct

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition

from winnow.contracts.media import MediaFailure
from winnow.stages._audio_headers import (
    id3_end,
    mp4_counts_are_possible,
    mpeg_duration,
    opus_pre_skip,
    wav_duration,
)
from winnow.stages._fetch.sniff import SNIFF_BYTES, media_format

HOSTILE_AUDIO = (
    av.FFmpegError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
)
"""What PyAV may raise on bytes made to hurt."""

# Name by the bytes -> name here, and in FFmpeg.
_CONTAINERS = {
    "wav": ("wav", "wav"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "ogg"),
    "adts": ("aac", "aac"),
    "mpeg": ("mp3", "mp3"),
    "mp4": ("mp4", "mov"),
    "aiff": ("aiff", "aiff"),
    "asf": ("asf", "asf"),
    "matroska": ("matroska", "matroska"),
    "amr": ("amr", "amr"),
    "caf": ("caf", "caf"),
    "au": ("au", "au"),
}
"""What may be opened. Never a playlist or a list of files (hls, dash, concat, sdp ...)."""

_DECODERS = (
    "aac,aac_latm,ac3,adpcm_ima_qt,adpcm_ima_wav,adpcm_ms,alac,amrnb,amrwb,eac3,flac,g722,gsm,"
    "gsm_ms,ilbc,mp1float,mp2float,mp3,mp3float,opus,pcm_alaw,pcm_f32be,pcm_f32le,pcm_f64be,"
    "pcm_f64le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32be,pcm_s32le,pcm_s8,"
    "pcm_u8,qcelp,speex,vorbis,wmalossless,wmapro,wmav1,wmav2,wmavoice"
)
"""FFmpeg decoders that may run: no video, no text, no rare format of a game."""

_OPTIONS = {
    "codec_whitelist": _DECODERS,
    "format_whitelist": ",".join(theirs for _, theirs in _CONTAINERS.values()),
    "protocol_whitelist": "none",
}


def container_of(data: bytes) -> tuple[str, int] | None:
    """Return the container's name here and where in ``data`` it begins; None for no audio.

    By the bytes alone. ID3 tags are part of an MP3 and are skipped before a FLAC or AAC stream.
    """
    kind, start = media_format(data[:SNIFF_BYTES], "audio"), 0
    if kind == "mpeg" and data[:3] == b"ID3":
        start = id3_end(data)
        kind = media_format(data[start : start + SNIFF_BYTES], "audio")
        if kind not in ("flac", "adts"):
            kind, start = "mpeg", 0
    return None if kind is None else (_CONTAINERS[kind][0], start)


def open_container(name: str, data: bytes) -> InputContainer:
    """Return an opened file; may raise HOSTILE_AUDIO. Other files and URLs cannot be opened."""
    if name == "mp4" and not mp4_counts_are_possible(data):
        msg = "more samples than bytes"
        raise ValueError(msg)
    demuxer = next(theirs for ours, theirs in _CONTAINERS.values() if ours == name)
    return av.open(
        io.BytesIO(data),
        "r",
        format=demuxer,
        container_options=dict(_OPTIONS),
        metadata_errors="replace",
        io_open=_refuse,
    )


def _refuse(url: str, flags: int, options: dict[str, str]) -> None:
    msg = "a media file may not open another"
    raise PermissionError(msg)


def audio_stream(container: InputContainer) -> AudioStream | MediaFailure:
    """Return the first audio stream, or why it is none to use: "is_video", "no_audio" ..."""
    for video in container.streams.video:
        if not video.disposition & Disposition.attached_pic:
            return "is_video"
    if not container.streams.audio:
        return "no_audio"
    stream = container.streams.audio[0]
    context = stream.codec_context
    if context is None or context.name not in _DECODERS.split(",") or stream.rate < 1:
        return "undecodable"
    return stream


def header_duration(
    name: str, data: bytes, container: InputContainer, stream: AudioStream
) -> float | None:
    """Return the seconds that the file announces, None where it announces none.

    wav: size of the data chunk (fact chunk where compressed); None for the sizes that streaming
        writers leave. mp3: frames by the Xing, Info or VBRI tag. flac: STREAMINFO. aiff, au, mp4:
        their counts of samples. caf: its packet table or data chunk. ogg: position of the last
        page. matroska, asf: the duration element. aac (ADTS), amr: None.
    """
    seconds: float | None = None
    if name == "wav":
        seconds = wav_duration(data)
    elif name == "mp3":
        seconds = mpeg_duration(data)
    elif name == "matroska":
        # FFmpeg guesses where the element Duration is missing.
        if b"\x44\x89" in data[:4096] and container.duration is not None:
            seconds = container.duration / av.time_base
    elif name == "caf" and stream.frames > 0 and _is_pcm(stream):
        seconds = stream.frames / stream.rate
    elif name not in ("aac", "amr") and stream.duration is not None and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
        if name == "ogg" and stream.codec_context.name == "opus":
            seconds -= opus_pre_skip(data)
    return seconds if seconds is not None and seconds > 0 else None


def _is_pcm(stream: AudioStream) -> bool:
    return stream.codec_context.name.startswith("pcm_")

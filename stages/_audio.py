"""Decode audio from bytes in memory: every container that speech and music come in, via FFmpeg.

Decoding is PyAV's (FFmpeg), in the calling thread. ``encode_audio`` is the way back.
"""

from __future__ import annotations

import numpy as np
import soxr
from av.audio.stream import AudioStream
from av.container import InputContainer

from winnow.contracts.media import DecodedAudio, MediaCaps, MediaFailure, Samples
from winnow.stages._audio_container import (
    HOSTILE_AUDIO,
    audio_stream,
    container_of,
    header_duration,
    open_container,
)
from winnow.stages._audio_encode import ENCODED_FORMATS, encode_audio
from winnow.stages._audio_frames import MAX_DECODED_BYTES, MAX_LEVEL, Heard, Segment
from winnow.stages._audio_headers import ogg_is_whole

__all__ = [
    "ENCODED_FORMATS",
    "MAX_DECODED_BYTES",
    "MAX_LEVEL",
    "decode_audio",
    "encode_audio",
    "header_duration_s",
    "to_mono",
]

_LOSSY_SLACK_S = 0.1
_EXACT_SLACK_S = 0.01


def decode_audio(data: bytes, caps: MediaCaps) -> DecodedAudio | MediaFailure:
    """Return the first audio stream of a file, or why there is none.

    The container is told by the bytes, never by a name; FFmpeg gets exactly that demuxer, decoders
    from a list, and cannot open any other file or URL. Threads: none.

    "undecodable": no such container, damaged from the beginning, more packets damaged than not, a
        decoder outside the list, or more than MAX_PLANES channels of a codec that keeps them
        apart (AAC, Opus, Vorbis; PCM may have any number).
    "too_long":    over ``caps.max_duration_s``, by the header (then nothing was decoded) or when
        so much has been decoded.
    "too_large":   over MAX_DECODED_BYTES, by the header or when so much has been decoded.
    "is_video":    a stream of moving pictures; a cover (attached picture) is none.
    "no_audio":    no audio stream, or not one sample, and none announced.
    "not_finite":  a sample of a float format is NaN, infinite or beyond MAX_LEVEL.

    Integer samples are divided by full scale (2^7, 2^15, 2^31; 24 bits are the upper ones of 32).
    Encoder delay and padding are cut where the file says them and FFmpeg does so: MP3 with a LAME
    tag, Opus, Vorbis; the delay (not the padding) of AAC in mp4; neither of AAC in ADTS.
    Where the rate or the number of channels changes in mid-stream, what follows is resampled to
    the first rate; if the channels differ, their mean is every channel.

    ``truncated``: a packet could not be decoded, or is cut; or the header announces more than was
        decoded, by over 0.01 s (PCM, FLAC) or 0.1 s (lossy codecs, whose frames do not end where
        the sound does); or the last page of an Ogg file is cut. What is announced: see
        ``header_duration``. A WAV of unknown size, ADTS and AMR announce nothing: cut between two
        frames they are whole, as an Ogg file is that was cut between two pages.
    """
    found = container_of(data)
    if found is None:
        return "undecodable"
    name, start = found
    data = data[start:]
    try:
        with open_container(name, data) as container:
            stream = audio_stream(container)
            if isinstance(stream, str):
                return stream
            announced_s = header_duration(name, data, container, stream)
            failure = _over_caps(stream, announced_s, caps)
            if failure is not None:
                return failure
            heard = Heard(max_duration_s=caps.max_duration_s)
            _decode_packets(container, stream, heard)
            if heard.failure is not None:
                return heard.failure
            return _assemble(name, data, stream, announced_s, heard)
    except HOSTILE_AUDIO:
        return "undecodable"


def header_duration_s(data: bytes) -> float | None:
    """Return the seconds that a file announces, without decoding; None where it announces none.

    ``data`` is the whole file: an Ogg file says its length at its end. See
    ``_audio_container.header_duration`` for what each container announces.
    """
    found = container_of(data)
    if found is None:
        return None
    name, start = found
    data = data[start:]
    try:
        with open_container(name, data) as container:
            stream = audio_stream(container)
            if isinstance(stream, str):
                return None
            return header_duration(name, data, container, stream)
    except HOSTILE_AUDIO:
        return None


def to_mono(samples_CN: Samples, rate: int, wanted_rate: int) -> Samples:
    """Return the mean of the channels at another rate (soxr, HQ), float32 (N,).

    One channel at ``wanted_rate`` already is passed on as it is. At least one sample.
    """
    mono = samples_CN[0] if samples_CN.shape[0] == 1 else samples_CN.mean(0, dtype=np.float32)
    if rate == wanted_rate:
        return mono
    resampled: Samples = soxr.resample(mono, rate, wanted_rate, quality="HQ")
    return resampled if resampled.size else mono[:1]


def _over_caps(
    stream: AudioStream, announced_s: float | None, caps: MediaCaps
) -> MediaFailure | None:
    if announced_s is None:
        return None
    if announced_s > caps.max_duration_s:
        return "too_long"
    if 4 * announced_s * stream.rate * stream.channels > MAX_DECODED_BYTES:
        return "too_large"
    return None


def _decode_packets(container: InputContainer, stream: AudioStream, heard: Heard) -> None:
    context = stream.codec_context
    context.thread_count = 1
    if context.name == "flac":
        # A frame with a wrong checksum is an error, not noise.
        context.options = {"err_detect": "crccheck+explode"}
    try:
        for packet in container.demux(stream):
            heard.cut_packet |= packet.is_corrupt
            try:
                frames = packet.decode()
            except HOSTILE_AUDIO:
                heard.num_failed += 1
                continue
            heard.num_good += bool(frames)
            for frame in frames:
                heard.add(frame)
            if heard.failure is not None:
                return
    except HOSTILE_AUDIO:
        heard.num_failed += 1


def _assemble(
    name: str, data: bytes, stream: AudioStream, announced_s: float | None, heard: Heard
) -> DecodedAudio | MediaFailure:
    if not heard.segments:
        return "undecodable" if heard.num_failed or announced_s else "no_audio"
    if heard.num_failed > heard.num_good:
        return "undecodable"
    context = stream.codec_context
    first = heard.segments[0]
    parts = [_like_first(s.joined(), s.rate, first) for s in heard.segments]
    if not all(s.finite for s in heard.segments):
        return "not_finite"
    samples = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    exact = context.name.startswith("pcm_") or context.name == "flac"
    missing_s = (announced_s or 0.0) - samples.shape[1] / first.rate
    return DecodedAudio(
        samples=samples,
        sample_rate=first.rate,
        codec=context.codec.canonical_name,
        container=name,
        bit_rate=context.bit_rate or None if name not in ("aac", "amr") else None,
        header_duration_s=announced_s,
        truncated=heard.num_failed > 0
        or (heard.cut_packet and name != "wav")  # FFmpeg calls a WAV of unknown size cut
        or (name == "ogg" and not ogg_is_whole(data))
        or missing_s > (_EXACT_SLACK_S if exact else _LOSSY_SLACK_S),
    )


def _like_first(samples_CN: Samples, rate: int, first: Segment) -> Samples:
    if samples_CN.shape[0] != first.num_channels:
        mono = samples_CN.mean(0, dtype=np.float32)
        samples_CN = np.repeat(mono[None], first.num_channels, axis=0)
    if rate != first.rate:
        samples_CN = soxr.resample(samples_CN.T, rate, first.rate, quality="HQ").T
    return samples_CN

"""Encode waveforms with PyAV, the same bytes every time: for made data, exports and tests."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
import soxr
from av.audio.stream import AudioStream

from winnow.contracts.media import Samples

_MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Format:
    """FFmpeg's names of muxer, encoder and sample format, and what the encoder takes."""

    muxer: str
    codec: str
    samples: str
    bit_rate: int | None = None
    rates: tuple[int, ...] = ()
    max_channels: int = 8
    min_channels: int = 1
    options: dict[str, str] = field(default_factory=dict)


_FORMATS = {
    "wav": _Format(muxer="wav", codec="pcm_s16le", samples="s16", max_channels=64),
    "wav_float": _Format(muxer="wav", codec="pcm_f32le", samples="flt", max_channels=64),
    "aiff": _Format(muxer="aiff", codec="pcm_s16be", samples="s16"),
    "au": _Format(muxer="au", codec="pcm_s16be", samples="s16"),
    "caf": _Format(muxer="caf", codec="pcm_s16le", samples="s16"),
    "flac": _Format(muxer="flac", codec="flac", samples="s16"),
    "mp3": _Format(
        muxer="mp3", codec="libmp3lame", samples="fltp", bit_rate=128_000, rates=_MPEG_RATES,
        max_channels=2,
    ),
    "opus": _Format(
        muxer="ogg", codec="libopus", samples="flt", bit_rate=64_000, rates=_OPUS_RATES
    ),
    # FFmpeg's own Vorbis encoder: in every build (libvorbis is not), and stereo only.
    "ogg": _Format(
        muxer="ogg", codec="vorbis", samples="fltp", max_channels=2, min_channels=2,
        options={"strict": "experimental"},
    ),
    "m4a": _Format(
        muxer="ipod", codec="aac", samples="fltp", bit_rate=128_000, rates=_MPEG_RATES[:-1] + (
            48_000, 64_000, 88_200, 96_000,
        ),
    ),
    "aac": _Format(
        muxer="adts", codec="aac", samples="fltp", bit_rate=128_000, rates=_MPEG_RATES
    ),
    "webm": _Format(
        muxer="webm", codec="libopus", samples="flt", bit_rate=64_000, rates=_OPUS_RATES
    ),
    "wma": _Format(
        muxer="asf", codec="wmav2", samples="fltp", bit_rate=128_000, rates=_MPEG_RATES,
        max_channels=2,
    ),
}  # fmt: skip

ENCODED_FORMATS = tuple(_FORMATS)
"""What ``encode_audio`` writes."""


def encode_audio(samples: Samples, rate: int, kind: str, *, bit_rate: int | None = None) -> bytes:
    """Return an audio file of float32 samples, (channels, samples) or (samples,).

    kind: one of ENCODED_FORMATS. "wav", "flac", "aiff", "au" and "caf" hold 16 bits: a sample x is
        stored as round(32768 x), clipped, and decoded as that / 32768; "wav_float" holds x itself.
        "mp3", "opus", "ogg" (Vorbis), "m4a" and "aac" (AAC), "webm" (Opus), "wma" are lossy. An
        encoder that does not take ``rate`` gets the samples resampled (soxr, HQ) to the next
        higher rate that it takes, or to its highest.
    bit_rate: bit/s of a lossy format; None: 128,000 for all channels together (Opus 64,000,
        Vorbis its own choice by quality).

    A Vorbis file is stereo: a mono recording is its left and its right channel.
    The same samples give the same bytes with the same FFmpeg. Raises ValueError for another kind,
    no sample, or more channels than the format takes.
    """
    if kind not in _FORMATS:
        msg = f"encode_audio: no format {kind!r}; use one of {', '.join(_FORMATS)}"
        raise ValueError(msg)
    chosen = _FORMATS[kind]
    samples_CN = np.atleast_2d(np.asarray(samples, np.float32))
    num_channels = samples_CN.shape[0]
    if not samples_CN.size or num_channels > chosen.max_channels:
        msg = f"encode_audio: {kind} cannot hold samples of shape {samples_CN.shape}"
        raise ValueError(msg)
    if num_channels < chosen.min_channels:
        samples_CN = np.repeat(samples_CN, chosen.min_channels, axis=0)
    if chosen.rates and rate not in chosen.rates:
        wanted = min((r for r in chosen.rates if r > rate), default=max(chosen.rates))
        samples_CN = np.atleast_2d(soxr.resample(samples_CN.T, rate, wanted).T)
        rate = wanted
    return _write(samples_CN, rate, chosen, bit_rate or chosen.bit_rate)


def _write(samples_CN: Samples, rate: int, chosen: _Format, bit_rate: int | None) -> bytes:
    out = io.BytesIO()
    layout = _layout(samples_CN.shape[0])
    with av.open(out, "w", format=chosen.muxer, options={"fflags": "+bitexact"}) as container:
        # bitexact: no version, no time, and no random serial number of an Ogg stream.
        options = {"flags": "+bitexact", "threads": "1", **chosen.options}
        stream = cast(AudioStream, container.add_stream(chosen.codec, rate=rate, options=options))
        stream.format, stream.layout = chosen.samples, layout
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(
            _stored(samples_CN, chosen.samples), format=chosen.samples, layout=layout
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return out.getvalue()


def _layout(num_channels: int) -> str:
    return {1: "mono", 2: "stereo"}.get(num_channels, f"{num_channels}c")


def _stored(samples_CN: Samples, kind: str) -> Any:
    """Return the samples as FFmpeg wants them: interleaved, or one row per channel ("fltp")."""
    if kind == "fltp":
        return np.ascontiguousarray(samples_CN)
    packed = np.ascontiguousarray(samples_CN.T).reshape(1, -1)
    if kind == "s16":
        return np.clip(np.rint(packed * 32768.0), -32768, 32767).astype(np.int16)
    return packed

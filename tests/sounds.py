"""Recordings to test with: made here, encoded here, then hurt."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from winnow.stages._audio import encode_audio


def sound(seconds: float = 1.0, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    """A sweep with a beat, and some noise: float32 (channels, samples), no two channels equal."""
    rng, t = np.random.default_rng(seed), np.arange(round(seconds * rate)) / rate
    beat = 0.55 + 0.45 * np.sin(2 * np.pi * 4 * t)
    wave = 0.4 * beat * np.sin(2 * np.pi * (180 + 40 * t) * t)
    gains = 1 - 0.05 * np.arange(channels)[:, None]
    noise = 0.01 * rng.standard_normal((channels, len(t)))
    return (gains * wave + noise).astype(np.float32)


def encoded(
    kind: str = "wav", seconds: float = 1.0, rate: int = 16_000, channels: int = 1
) -> bytes:
    return encode_audio(sound(seconds, rate, channels), rate, kind)


def hour_header(kind: str, hours: int = 100) -> bytes:
    """A file of a few bytes whose header says that it lasts so long."""
    if kind == "flac":
        data = bytearray(encoded("flac"))
        total = int.from_bytes(data[18:26], "big") >> 36 << 36 | hours * 3_600 * 16_000
        data[18:26] = total.to_bytes(8, "big")
        return bytes(data)
    size = hours * 3_600 * 8_000  # 8-bit mono at 8 kHz
    format_chunk = struct.pack("<HHIIHH", 1, 1, 8_000, 8_000, 1, 8)
    head = b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + struct.pack("<I", 16)
    return head + format_chunk + b"data" + struct.pack("<I", size) + bytes(1_000)


def not_finite(value: float = float("nan")) -> bytes:
    samples = sound(0.2)
    samples[0, 700] = value
    return encode_audio(samples, 16_000, "wav_float")


def video(*, with_sound: bool = True) -> bytes:
    """An mp4 of moving pictures (mpeg4) and AAC."""
    out = io.BytesIO()
    rng = np.random.default_rng(0)
    with av.open(out, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        pictures = container.add_stream("mpeg4", rate=10, options={"flags": "+bitexact"})
        pictures.width = pictures.height = 32
        pictures.pix_fmt = "yuv420p"
        voice = container.add_stream("aac", rate=16_000) if with_sound else None
        for i in range(5):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 256, (32, 32, 3), np.uint8), "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(pictures.encode(frame))
        container.mux(pictures.encode(None))
        if voice is not None:
            frame = av.AudioFrame.from_ndarray(sound(0.5), "fltp", "mono")
            frame.sample_rate, frame.pts = 16_000, 0
            container.mux([*voice.encode(frame), *voice.encode(None)])
    return out.getvalue()


def mp3_with_cover(seconds: float = 1.0) -> bytes:
    """An MP3 whose ID3 tag holds a JPEG."""
    picture, out = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (48, 48), "red").save(picture, "JPEG")
    with av.open(out, "w", format="mp3") as container:
        voice = container.add_stream("libmp3lame", rate=16_000, layout="mono", format="fltp")
        with av.open(io.BytesIO(picture.getvalue()), format="jpeg_pipe") as jpeg:
            cover = container.add_stream_from_template(jpeg.streams.video[0])
            cover.disposition = av.stream.Disposition.attached_pic
            (packet,) = [p for p in jpeg.demux() if p.size]
            packet.stream = cover
            container.mux(packet)
        frame = av.AudioFrame.from_ndarray(sound(seconds), "fltp", "mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux([*voice.encode(frame), *voice.encode(None)])
    return out.getvalue()


@functools.cache
def mutated_sounds() -> tuple[bytes, ...]:
    """71 files: good ones, six ways of hurting them, and what is sold as sound on the web."""
    return tuple(_mutated())


def _mutated() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for kind in ("wav", "flac", "mp3", "opus", "ogg", "m4a", "aac"):
        data = encoded(kind)
        yield data
        yield data[: len(data) // 2]  # truncated
        yield data[:40]  # header only
        yield data[:12] + rng.bytes(len(data) - 12)  # header of one, body of noise
        middle = len(data) // 2
        yield data[:middle] + bytes(200) + data[middle + 200 :]  # a hole
        flipped = bytearray(data)
        for position in rng.integers(0, len(data), 10):
            flipped[position] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
        yield data + b"\x00" * 1000 + data  # something behind it
    yield from (encoded("wav", rate=1_000), encoded("wav", 0.2, rate=192_000))
    yield from (encoded("wav", 0.2, channels=12), encoded("wav", 1 / 16_000))
    yield from (encode_audio(np.zeros((1, 16_000), np.float32), 16_000, "flac"), encoded("aiff"))
    yield from (hour_header("wav"), hour_header("flac"), not_finite(), not_finite(float("-inf")))
    yield from (mp3_with_cover(), video(), video(with_sound=False))
    yield from (
        encoded("wav")[:40] + bytes(4),
        encoded("mp3") + encoded("mp3", rate=48_000, channels=2),
    )
    yield from (b"", b"\x00", b"<html><body>404</body></html>")
    yield b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n"
    yield encoded("webm", 3.0, rate=48_000, channels=2)
    yield b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield encode_audio(sound(4.0, seed=1), 16_000, "mp3")

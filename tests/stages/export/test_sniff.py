"""Extensions of what real encoders write."""

from __future__ import annotations

import io
import wave

import av
import numpy as np
import pytest
from PIL import Image, features

from winnow.stages.export._sniff import HEAD_BYTES, media_extension, media_type

AVIF = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF encoder")


@pytest.mark.parametrize(
    ("kind", "extension"),
    [
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("TIFF", "tiff"),
        ("BMP", "bmp"),
        pytest.param("AVIF", "avif", marks=AVIF),
    ],
)
@pytest.mark.parametrize("side", [1, 300])
def test_what_pillow_writes(kind: str, extension: str, side: int) -> None:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (1, 2, 3)).save(out, kind)
    assert media_extension(out.getvalue()[:HEAD_BYTES]) == extension


def test_what_the_wave_module_writes() -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(100))
    assert media_extension(out.getvalue()[:HEAD_BYTES]) == "wav"


@pytest.mark.parametrize(
    ("container", "codec", "rate", "extension"),
    [
        ("wav", "pcm_s16le", 16000, "wav"),
        ("flac", "flac", 16000, "flac"),
        ("ogg", "libopus", 48000, "opus"),
        ("opus", "libopus", 48000, "opus"),
        ("mp3", "libmp3lame", 16000, "mp3"),
        ("ipod", "aac", 16000, "m4a"),
        ("adts", "aac", 16000, "aac"),
        ("aiff", "pcm_s16be", 16000, "aiff"),
        ("caf", "pcm_s16be", 16000, "caf"),
        ("au", "pcm_s16be", 16000, "au"),
        ("matroska", "libopus", 48000, "mka"),
        ("webm", "libopus", 48000, "webm"),
    ],
)
def test_what_ffmpeg_writes(container: str, codec: str, rate: int, extension: str) -> None:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.int16), "s16", "mono")
        frame.sample_rate = rate
        for source in (frame, None):
            for packet in stream.encode(source):
                file.mux(packet)
    assert media_extension(out.getvalue()[:HEAD_BYTES]) == extension
    assert media_type(extension).startswith("audio/")


@pytest.mark.parametrize(
    ("head", "extension"),
    [
        (b"#!AMR-WB\n", "amr"),
        (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "wma"),
        (b"BW64\0\0\0\0WAVE", "wav"),
        (b"fLaC\0\0\0\x22", "flac"),
        (b"OggS\0\x02", "ogg"),
        (b"ID3\x04\0", "mp3"),
        (b"\xff\xfb\x90\x64", "mp3"),  # MPEG 1 layer III
        (b"\xff\xf3\x90\x64", "mp3"),  # MPEG 2 layer III
        (b"\xff\xf1\x50\x80", "aac"),  # ADTS
        (b"\0\0\0\x20ftypM4A \0\0\0\0", "m4a"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "heic"),
        (b"\0\0\0\x18ftyphevc\0\0\0\0", "heic"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0", "heic"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "mp4"),
        (b"MM\0*\0\0\0\x08", "tiff"),
        (b"RIFF\0\0\0\0AVI ", "bin"),
        (b"<html>", "bin"),
        (b"BMW is a car", "bin"),
        (b"", "bin"),
        (b"\xff", "bin"),
    ],
)
def test_published_signatures(head: bytes, extension: str) -> None:
    assert media_extension(head) == extension


@pytest.mark.parametrize(
    ("extension", "kind"),
    [("jpg", "image/jpeg"), ("webp", "image/webp"), ("mp3", "audio/mpeg"), ("wav", "audio/wav"),
     ("bin", "application/octet-stream"), ("xyz", "application/octet-stream")],
)  # fmt: skip
def test_media_types(extension: str, kind: str) -> None:
    assert media_type(extension) == kind

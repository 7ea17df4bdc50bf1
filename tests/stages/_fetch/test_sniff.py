"""Signatures against files that real encoders wrote."""

from __future__ import annotations

import io
import wave

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from winnow.stages._fetch.sniff import SNIFF_BYTES, media_format

FORMATS = {
    "JPEG": "jpeg",
    "PNG": "png",
    "GIF": "gif",
    "WEBP": "webp",
    "BMP": "bmp",
    "TIFF": "tiff",
    "ICO": "ico",
    "PPM": "pnm",
    "JPEG2000": "jpeg2000",
    "AVIF": "heif",
}


@pytest.mark.parametrize("name", FORMATS)
def test_images_that_pillow_writes(name):
    needs = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}.get(name)
    if needs and not features.check(needs):
        pytest.skip(f"this Pillow writes no {name}")
    out = io.BytesIO()
    Image.effect_noise((32, 32), 50).convert("RGB").save(out, name)
    assert media_format(out.getvalue()[:SNIFF_BYTES], "image") == FORMATS[name]
    assert media_format(out.getvalue()[:SNIFF_BYTES], "audio") is None


def test_a_wave_file():
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(3200))
    assert media_format(out.getvalue()[:SNIFF_BYTES], "audio") == "wav"
    assert media_format(out.getvalue()[:SNIFF_BYTES], "image") is None


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"ID3\x04\0\0\0\0\0\0", "mpeg"),
        (bytes.fromhex("fffb9064"), "mpeg"),  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz
        (bytes.fromhex("fff3e4c4"), "mpeg"),  # MPEG 2 layer III
        (bytes.fromhex("fff15080"), "adts"),
        (b"fLaC\0\0\0\x22", "flac"),
        (b"OggS\0\2", "ogg"),
        (b"\0\0\0\x20ftypM4A ", "mp4"),
        (b"FORM\0\0\0\0AIFF", "aiff"),
        (b"\x1a\x45\xdf\xa3", "matroska"),
        (b"\xff\xff\xff\xff", None),  # every field reserved
        (b"\xff\xe8\x90\x64", None),  # version 01 is reserved
        (b"\xff\xd8\xff\xe0", None),  # a JPEG
        (b"\0\0\0\x20ftypavif", None),
        (b"<html>", None),
    ],
)
def test_audio(head, name):
    assert media_format(head, "audio") == name


@pytest.mark.parametrize(
    "page",
    [
        b"<!DOCTYPE html>",
        b"<?xml version='1.0'?><svg",
        b"<svg xmlns=",
        b'{"error": 1}',
        b"BMW cars for sale, cheap, today only",
        b"P7ease wait",
        b"%PDF-1.7",
        b"GIF is a format",
        b"\x1f\x8b\x08",
        b"\0" * 32,
    ],
)
def test_what_is_no_image(page):
    assert media_format(page[:SNIFF_BYTES], "image") is None


@given(st.binary(max_size=SNIFF_BYTES), st.sampled_from(["image", "audio"]))
def test_any_bytes(head, media):
    assert media_format(head, media) is None or isinstance(media_format(head, media), str)

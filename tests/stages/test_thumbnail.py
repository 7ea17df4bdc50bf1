"""Thumbnails: small, upright, on white, and never an exception."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from winnow.stages._thumbnail import SIDE, thumbnail


def gradient(width: int, height: int) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixels(data: bytes | None) -> np.ndarray:
    assert data is not None
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG"
    return np.asarray(image.convert("RGB"), np.float64)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize(("width", "height"), [(1000, 600), (300, 900), (40, 30), (2000, 3)])
def test_fits_the_square_and_looks_the_same(kind: str, width: int, height: int) -> None:
    source = gradient(width, height)
    found = pixels(thumbnail(encoded(source, kind)))
    assert found.shape[0] <= SIDE
    assert found.shape[1] <= SIDE
    assert max(found.shape[:2]) == min(SIDE, max(width, height))
    reference = source.copy()
    reference.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    expected = np.asarray(reference, np.float64)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_is_upright(orientation: int) -> None:
    source = gradient(320, 240)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(source, "JPEG", exif=exif, quality=95)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    expected.thumbnail((SIDE, SIDE))
    difference = np.abs(pixels(thumbnail(data)) - np.asarray(expected, np.float64))
    assert difference.mean() < 8


def test_transparency_is_white() -> None:
    image = Image.new("RGBA", (400, 400), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 200, 400))
    found = pixels(thumbnail(encoded(image)))
    assert np.abs(found[:, -20:] - 255).max() < 6
    assert np.abs(found[:, :20] - [254, 0, 0]).max() < 12


def test_refuses_more_pixels_than_the_cap_before_decoding() -> None:
    data = encoded(gradient(200, 100))
    assert thumbnail(data, max_pixels=19_999) is None
    assert thumbnail(data, max_pixels=20_000) is not None


def test_a_bomb_is_no_picture() -> None:
    header = bytearray(encoded(Image.new("1", (8, 8))))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    assert thumbnail(bytes(header)) is None


@pytest.mark.parametrize(
    "data", [b"", b"<html>no</html>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF"]
)
def test_what_is_no_picture_gives_none(data: bytes) -> None:
    assert thumbnail(data) is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_bytes_give_none(kind: str) -> None:
    data = encoded(gradient(300, 300), kind)
    assert thumbnail(data[: len(data) // 2]) is None


VICTIMS = [encoded(gradient(60, 40), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF")]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(VICTIMS),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_damaged_bytes_never_raise(data: bytes, damage: list[tuple[int, int]]) -> None:
    broken = bytearray(data)
    for at, value in damage:
        broken[at % len(broken)] = value
    found = thumbnail(bytes(broken))
    assert found is None or found.startswith(b"\xff\xd8")


def test_16_bit_grey_keeps_its_levels() -> None:
    dark = Image.fromarray(np.full((20, 20), 50 * 256, np.uint16))
    found = thumbnail(encoded(dark, "PNG"))
    assert found is not None
    assert np.abs(np.asarray(Image.open(io.BytesIO(found))).astype(int) - 50).max() <= 2

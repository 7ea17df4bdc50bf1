"""What the stage says about files whose properties are known."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from winnow.contracts.media import MediaCaps
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.image_info import ImageInfo, aspect_ratio


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def run(*data: bytes | None, caps: MediaCaps | None = None) -> list[dict]:
    stage = ImageInfo()
    batch = pa.record_batch({"image": pa.array(data, pa.large_binary())})
    with MediaCache(1 << 26, 2) as cache:
        media = BatchMedia(batch, caps=caps or MediaCaps(), cache=cache, first_row=0)
        out = stage.annotate(batch, None, media)
    out.validate(full=True)
    assert out.schema == stage.writes
    return out.to_pylist()


def test_a_plain_image() -> None:
    data = encoded(Image.new("RGB", (300, 200)), "JPEG")
    assert run(data) == [
        {
            "image_format": "JPEG",
            "width": 300,
            "height": 200,
            "aspect_ratio": 1.5,
            "exif_orientation": 1,
            "animated": False,
            "alpha": False,
            "image_size_bytes": len(data),
            "image_digest": hashlib.blake2b(data, digest_size=16).digest(),
            "image_info_error": None,
        }
    ]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_width_and_height_are_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (row,) = run(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif))
    assert (row["width"], row["height"]) == ((20, 30) if orientation > 4 else (30, 20))
    assert row["exif_orientation"] == orientation
    assert row["aspect_ratio"] == 1.5


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(128, 128), (523, 517), (1037, 129)])
def test_size_is_the_files_even_where_less_is_decoded(
    size: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    (row,) = run(encoded(Image.new("RGB", size), "JPEG", exif=exif))
    assert (row["width"], row["height"]) == (size if orientation == 1 else size[::-1])
    assert not ImageInfo().decodes_full_size


def test_alpha_and_frames() -> None:
    frames = [Image.fromarray(np.full((9, 9), v, np.uint8)) for v in (0, 255)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    clear = encoded(Image.new("RGBA", (9, 9)), "WEBP")
    rows = run(gif, clear)
    assert [r["animated"] for r in rows] == [True, False]
    assert [r["alpha"] for r in rows] == [False, True]


def test_failures_keep_what_the_bytes_alone_say() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100), np.uint8)
    large = encoded(Image.fromarray(noise))
    rows = run(None, b"", b"<html>", large[:-99], large, caps=MediaCaps(max_pixels=9_999))
    codes = [r["image_info_error"] for r in rows]
    assert codes == ["missing", "undecodable", "undecodable", "too_large", "too_large"]
    assert [r["image_size_bytes"] for r in rows] == [None, 0, 6, len(large) - 99, len(large)]
    for row in rows:
        assert (row["image_digest"] is None) == (row["image_size_bytes"] is None)
        assert row["width"] is row["image_format"] is row["animated"] is row["alpha"] is None
    assert run(large[:-99])[0]["image_info_error"] == "undecodable"


def test_aspect_ratio_is_symmetric_and_at_least_1() -> None:
    assert aspect_ratio(300, 100) == aspect_ratio(100, 300) == 3.0
    assert aspect_ratio(7, 7) == 1.0

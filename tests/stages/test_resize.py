"""Geometry against img2dataset's Resizer; pixels and bytes against what the docstring says."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import MediaCaps
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.resize import Resize, flatten, place, plan_geometry

MODES = ["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"]
SIZES = [
    *[(w, h) for w in (1, 2, 31, 64, 65, 97, 150, 333) for h in (1, 3, 63, 64, 66, 101, 200)],
    (127, 129), (129, 127), (500, 37), (37, 500), (192, 96), (95, 190),
]  # fmt: skip


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def run(stage: Resize, *data: bytes | None) -> list[dict]:
    batch = pa.record_batch({"image": pa.array(data, pa.large_binary())})
    with MediaCache(1 << 28, 0) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        out = stage.annotate(batch, None, media)
    out.validate(full=True)
    assert out.schema == stage.writes
    return out.to_pylist()


@pytest.mark.parametrize("only_if_bigger", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_geometry_is_that_of_img2dataset(mode: str, only_if_bigger: bool) -> None:
    resizer = pytest.importorskip("img2dataset.resizer").Resizer(64, mode, only_if_bigger)
    stage = Resize(mode=mode, image_size=64, only_if_bigger=only_if_bigger)
    images = [encoded(Image.new("RGB", size, (200, 30, 60))) for size in SIZES]
    rows = run(stage, *images)
    for size, image, row in zip(SIZES, images, rows, strict=True):
        _, width, height, *_, error = resizer(io.BytesIO(image))
        assert error is None
        assert (row["resized_width"], row["resized_height"]) == (width, height), size
        with Image.open(io.BytesIO(row["resized_image"])) as decoded:
            assert (decoded.format, decoded.size) == ("JPEG", (width, height))


@pytest.mark.parametrize("mode", MODES)
def test_pixels_are_close_to_those_of_img2dataset(mode: str) -> None:
    resizer = pytest.importorskip("img2dataset.resizer").Resizer(
        64, mode, False, encode_format="png", encode_quality=1
    )
    rng = np.random.default_rng(5)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8))
    for size in [(160, 113), (75, 240), (640, 480)]:
        image = encoded(small.resize(size, Image.Resampling.BICUBIC))
        (row,) = run(Resize(mode=mode, image_size=64, encode_format="png"), image)
        theirs = np.asarray(Image.open(io.BytesIO(resizer(io.BytesIO(image))[0])), np.int16)
        ours = np.asarray(Image.open(io.BytesIO(row["resized_image"])), np.int16)
        shifted = np.abs(theirs[:, 1:] - theirs[:, :-1]).mean()
        assert np.abs(ours - theirs).mean() < 0.4 * shifted


def test_border_is_white_and_centred() -> None:
    black = Image.new("RGB", (40, 20), "black")
    (row,) = run(Resize(mode="border", image_size=10, encode_format="png"), encoded(black))
    pixels = np.asarray(Image.open(io.BytesIO(row["resized_image"])))
    assert (pixels.max(axis=(1, 2)) == [255, 255, 0, 0, 0, 0, 0, 255, 255, 255]).all()


def test_an_odd_pixel_is_cut_or_added_right_and_below() -> None:
    ramp = Image.fromarray(np.arange(25, dtype=np.uint8).reshape(5, 5))
    assert np.asarray(place(ramp, (2, 2))).tolist() == [[6, 7], [11, 12]]
    padded = np.asarray(place(Image.new("L", (1, 1), 0), (4, 4)))
    assert np.argwhere(padded == 0).tolist() == [[1, 1]]


def test_area_interpolation_is_the_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8)
    stage = Resize(mode="keep_ratio", image_size=6, encode_format="png")
    (row,) = run(stage, encoded(Image.fromarray(pixels)))
    mean = pixels.reshape(6, 4, 6, 4).mean(axis=(1, 3))
    assert np.abs(np.asarray(Image.open(io.BytesIO(row["resized_image"]))) - mean).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode_becomes_grey_or_rgb(mode: str) -> None:
    image = Image.new("I;16", (9, 9), 40_000) if mode == "I;16" else Image.new(mode, (9, 9))
    assert flatten(image).mode == ("L" if mode in ("1", "L", "I;16", "F") else "RGB")


def test_16_bit_grey_keeps_its_levels() -> None:
    levels = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    (row,) = run(Resize(mode="no", encode_format="png"), encoded(Image.fromarray(levels)))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(row["resized_image"]))), levels // 256)


def test_transparency_goes_on_white() -> None:
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    (row,) = run(Resize(mode="no", encode_format="png"), encoded(half))
    assert (
        np.asarray(Image.open(io.BytesIO(row["resized_image"]))).flatten().tolist() == [127] * 192
    )


def test_orientation_is_applied_and_metadata_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    tall = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif, comment=b"secret", dpi=(72, 72))
    (row,) = run(Resize(mode="no", skip_reencode=True), tall)
    assert (row["resized_width"], row["resized_height"]) == (20, 40)
    with Image.open(io.BytesIO(row["resized_image"])) as image:
        assert image.size == (20, 40)
        assert not image.getexif()
    assert b"secret" not in row["resized_image"]


def test_skip_reencode_keeps_bytes_only_where_nothing_changes() -> None:
    rgb = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 30, 3), np.uint8))
    jpg, png = encoded(rgb, "JPEG", quality=40), encoded(rgb)
    frames = encoded(rgb, "WEBP", save_all=True, append_images=[Image.new("RGB", (30, 30))])
    stage = Resize(mode="keep_ratio", image_size=64, only_if_bigger=True, skip_reencode=True)
    rows = run(stage, jpg, png)
    assert rows[0]["resized_image"] == jpg
    assert rows[1]["resized_image"][:2] == b"\xff\xd8"
    (smaller,) = run(Resize(mode="keep_ratio", image_size=16, skip_reencode=True), jpg)
    assert smaller["resized_width"] == 16
    (clear,) = run(
        Resize(mode="no", encode_format="png", skip_reencode=True), encoded(rgb.convert("RGBA"))
    )
    assert Image.open(io.BytesIO(clear["resized_image"])).mode == "RGB"
    (still,) = run(Resize(mode="no", encode_format="webp", skip_reencode=True), frames)
    assert not Image.open(io.BytesIO(still["resized_image"])).is_animated


@pytest.mark.parametrize("encode_format", ["jpg", "png", "webp"])
def test_the_same_bytes_every_time(encode_format: str) -> None:
    rgb = Image.fromarray(np.random.default_rng(2).integers(0, 256, (90, 70, 3), np.uint8))
    stage = Resize(image_size=64, encode_format=encode_format)
    assert run(stage, encoded(rgb)) == run(stage, encoded(rgb, compress_level=1))


def test_failures() -> None:
    stage = Resize(mode="keep_ratio", image_size=512)
    rows = run(
        stage,
        None,
        b"<html>",
        encoded(Image.new("L", (1, 1000))),
        encoded(Image.new("L", (1, 20_000))),
    )
    codes = [row["resize_error"] for row in rows]
    assert codes == ["missing", "undecodable", "output_too_large", "output_too_large"]
    assert all(row["resized_image"] is None and row["resized_width"] is None for row in rows)
    (wide,) = run(Resize(mode="no", encode_format="webp"), encoded(Image.new("L", (16_400, 2))))
    assert wide["resize_error"] == "output_too_large"


def test_plan_geometry_rounds_half_to_even() -> None:
    assert plan_geometry((200, 101), "keep_ratio_largest", 100, False).scaled == (100, 50)
    assert plan_geometry((200, 103), "keep_ratio_largest", 100, False).scaled == (100, 52)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"image_size": 0}, "image_size=0; use 1 to 16383"),
        ({"encode_quality": 101}, "encode_quality=101 is not a quality of jpg; use 1 to 100"),
        ({"encode_format": "png", "encode_quality": 95}, "of png; use 0 to 9"),
    ],
)
def test_bad_parameters(parameters: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Resize(**parameters)

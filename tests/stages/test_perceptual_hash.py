"""Hashes against imagehash, bit for bit; thumbnail and detail against their definitions."""

from __future__ import annotations

import io
from dataclasses import replace

import imagehash
import numpy as np
import pyarrow as pa
import pytest
import scipy.fftpack
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import MediaCaps
from winnow.stages._media import BatchMedia, MediaCache
from winnow.stages.perceptual_hash import (
    PerceptualHash,
    difference_hash,
    low_frequencies,
    perceptual_hash,
    thumbnail,
)

BOTH = PerceptualHash(algorithms=("phash", "dhash"))
CUT_OFF = 0.15
"""As the docstring suggests."""


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def run(stage: PerceptualHash, *data: bytes | None) -> list[dict]:
    batch = pa.record_batch({"image": pa.array(data, pa.large_binary())})
    with MediaCache(1 << 28, 2) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        out = stage.annotate(batch, None, media)
    out.validate(full=True)
    assert out.schema == stage.writes
    return out.to_pylist()


def details(*images: Image.Image) -> np.ndarray:
    return np.array([row["image_detail"] for row in run(BOTH, *map(encoded, images))])


def one_over_f(rng: np.random.Generator, side: int, contrast: float = 50) -> Image.Image:
    """Noise with the spectrum of a photograph."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) / frequency).real
    field = (field - field.mean()) / field.std() * contrast + 128
    return Image.fromarray(field.clip(0, 255).astype(np.uint8))


def gradient(rng: np.random.Generator, side: int) -> Image.Image:
    angle, (low, high) = rng.uniform(0, 2 * np.pi), rng.uniform(0, 255, 2)
    y, x = np.mgrid[:side, :side] / side - 0.5
    along = (np.cos(angle) * x + np.sin(angle) * y) / np.sqrt(2) + 0.5
    return Image.fromarray((low + (high - low) * along).round().astype(np.uint8))


def flat(rng: np.random.Generator, side: int, sigma: float = 0) -> Image.Image:
    values = rng.integers(256) + rng.normal(0, sigma, (side, side))
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def drawing(rng: np.random.Generator) -> Image.Image:
    image = Image.new("RGB", (300, 300), "white")
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 4)):
        x, y = rng.integers(20, 180, 2)
        w, h = rng.integers(40, 110, 2)
        colour = tuple(int(c) for c in rng.integers(0, 200, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + w, y + h), fill=colour)
    return image


def assert_equal_to_imagehash(images: list[Image.Image]) -> None:
    rows = run(BOTH, *map(encoded, images))
    for image, row in zip(images, rows, strict=True):
        assert f"{row['phash']:016x}" == str(imagehash.phash(image))
        assert f"{row['dhash']:016x}" == str(imagehash.dhash(image))


def test_random_images() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 300, (250, 2))
    assert_equal_to_imagehash(
        [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]
    )


@pytest.mark.parametrize("kind", [gradient, flat, one_over_f])
def test_gradients_flats_and_natural_looking_images(kind) -> None:
    rng = np.random.default_rng(1)
    assert_equal_to_imagehash([kind(rng, int(rng.integers(2, 250))) for _ in range(150)])


def test_drawings_and_every_flat_grey() -> None:
    rng = np.random.default_rng(2)
    assert_equal_to_imagehash([drawing(rng) for _ in range(60)])
    assert_equal_to_imagehash([Image.new("L", (70, 70), grey) for grey in range(256)])


def test_thousands_of_ties() -> None:
    """Images of few values have equal coefficients at the median: the last bit decides."""
    rng = np.random.default_rng(3)
    grids = [rng.integers(0, 2, (32, 32), np.uint8) * rng.integers(1, 256) for _ in range(800)]
    grids += [np.kron(rng.integers(0, 2, (4, 4)), np.full((8, 8), 255)) for _ in range(400)]
    grids += [np.roll(np.eye(32) * 255, int(k), axis=1) for k in rng.integers(0, 32, 200)]
    for pattern in range(600):
        tile = np.array([[pattern & 1, pattern & 2], [pattern & 4, pattern & 8]]) > 0
        grids.append(np.tile(tile, (16, 16)) * (pattern % 256))
    stack = np.array(grids).astype(np.uint8)
    for grid, value in zip(stack, perceptual_hash(low_frequencies(stack)), strict=True):
        assert f"{value:016x}" == str(imagehash.phash(Image.fromarray(grid)))


def test_coefficients_have_the_same_bits_alone_and_in_a_stack() -> None:
    grids = np.random.default_rng(4).integers(0, 256, (501, 32, 32), np.uint8)
    stacked = low_frequencies(grids)
    for grid, dct in zip(grids, stacked, strict=True):
        theirs = scipy.fftpack.dct(scipy.fftpack.dct(grid, axis=0), axis=1)[:8, :8]
        assert np.array_equal(dct, theirs)
        assert np.array_equal(dct, low_frequencies(grid[None])[0])


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr"]
)
def test_every_mode(mode: str) -> None:
    rng = np.random.default_rng(5)
    rgba = Image.fromarray(rng.integers(0, 256, (90, 120, 4), np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65_536, (90, 120), np.uint16))
    else:
        image = rgba.convert(mode) if mode in ("RGBA", "LA") else rgba.convert("RGB").convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "I", "F", "YCbCr") else "PNG")
    (row,) = run(PerceptualHash(algorithms=("phash", "dhash"), transparency="ignore"), data)
    (seen,) = run(BOTH, data)
    with Image.open(io.BytesIO(data)) as opened:
        reference: Image.Image = opened
        if mode == "I;16":  # imagehash would clip it at 255
            reference = Image.fromarray((np.asarray(opened) // 256).astype(np.uint8))
        opened.load()
        assert f"{row['phash']:016x}" == str(imagehash.phash(reference))
        assert f"{row['dhash']:016x}" == str(imagehash.dhash(reference))
        if mode in ("RGBA", "LA"):
            page = Image.new("RGBA", reference.size, "white")
            page.paste(reference.convert("RGBA"), mask=reference.getchannel("A"))
            reference = page.convert("RGB")
        assert f"{seen['phash']:016x}" == str(imagehash.phash(reference))
        assert f"{seen['dhash']:016x}" == str(imagehash.dhash(reference))


def test_silhouettes_on_a_transparent_ground_differ() -> None:
    """Their stored colours are all black: only what is seen tells them apart."""
    drawn = []
    for box in ((10, 10, 60, 90), (50, 20, 95, 40)):
        image = Image.new("LA", (100, 100), (0, 0))
        ImageDraw.Draw(image).ellipse(box, fill=(0, 255))
        drawn.append(image)
    first, second = run(BOTH, *map(encoded, drawn))
    assert bin(first["phash"] ^ second["phash"]).count("1") > 8
    ignored = PerceptualHash(transparency="ignore")
    assert [row["phash"] for row in run(ignored, *map(encoded, drawn))] == [0, 0]


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    colours=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=6),
    shapes=st.lists(st.tuples(*[st.integers(-20, 220)] * 4, st.integers(0, 5)), max_size=6),
    mode=st.sampled_from(["RGB", "L", "P", "1"]),
    kind=st.sampled_from(["PNG", "BMP", "TIFF"]),
)
def test_any_lossless_drawing(size, colours, shapes, mode: str, kind: str) -> None:
    image = Image.new("RGB", size, colours[0])
    draw = ImageDraw.Draw(image)
    for x, y, right, lower, colour in shapes:
        box = (min(x, right), min(y, lower), max(x, right), max(y, lower))
        draw.ellipse(box, fill=colours[colour % len(colours)])
    data = encoded(image.convert(mode), kind)
    (row,) = run(BOTH, data)
    with Image.open(io.BytesIO(data)) as reference:
        assert f"{row['phash']:016x}" == str(imagehash.phash(reference))
        assert f"{row['dhash']:016x}" == str(imagehash.dhash(reference))


@pytest.mark.parametrize(
    ("kind", "side", "stage"),
    [
        ("JPEG", 200, replace(BOTH, jpeg_decode="full")),
        ("JPEG", 127, BOTH),  # too small to reduce
        ("WEBP", 200, BOTH),
    ],
)
def test_lossy_files_hash_as_imagehash_hashes_them(
    kind: str, side: int, stage: PerceptualHash
) -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        data = encoded(one_over_f(rng, side), kind, quality=60)
        (row,) = run(stage, data)
        with Image.open(io.BytesIO(data)) as reference:
            assert f"{row['phash']:016x}" == str(imagehash.phash(reference))
            assert f"{row['dhash']:016x}" == str(imagehash.dhash(reference))


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True, "quality": 40}])
def test_a_reduced_jpeg_hashes_nearly_as_a_full_one(options: dict) -> None:
    rng = np.random.default_rng(12)
    images = [one_over_f(rng, int(side)) for side in rng.integers(128, 700, 25)]
    images += [one_over_f(rng, 600).convert("CMYK").crop((0, 0, 523, 301)) for _ in range(5)]
    images += [drawing(rng) for _ in range(30)]
    data = [encoded(image, "JPEG", **options) for image in images]
    full = run(replace(BOTH, jpeg_decode="full"), *data)
    found = run(BOTH, *data)
    for name, most in (("phash", 0.5), ("dhash", 0.6)):
        bits = [(a[name] ^ b[name]).bit_count() for a, b in zip(full, found, strict=True)]
        assert 0 < np.mean(bits) < most  # 0 would mean that nothing was reduced
        assert np.quantile(bits, 0.95) <= 2
    for a, b in zip(full, found, strict=True):
        cells = [np.frombuffer(row["thumbnail"], np.uint8).astype(int) for row in (a, b)]
        assert np.abs(cells[0] - cells[1]).mean() < 3
        assert b["image_detail"] == pytest.approx(a["image_detail"], rel=0.1)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_reduced_jpeg_hashes_as_what_is_seen(orientation: int) -> None:
    """527 and 519 are no multiples of 8: reduced pixels must be turned with what they cover."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    rng = np.random.default_rng(13)
    images = [one_over_f(rng, 527).crop((0, 0, 527, 519)) for _ in range(6)]
    data = [encoded(image, "JPEG", exif=exif, quality=95) for image in images]
    for image, row in zip(images, run(BOTH, *data), strict=True):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, exif=exif))))
        (seen,) = run(BOTH, encoded(upright))
        assert (row["phash"] ^ seen["phash"]).bit_count() <= 2
        assert (row["dhash"] ^ seen["dhash"]).bit_count() <= 2


@pytest.mark.parametrize("jpeg_decode", ["reduced", "full"])
def test_the_hash_does_not_depend_on_who_shares_the_pass(jpeg_decode: str) -> None:
    stage = replace(BOTH, jpeg_decode=jpeg_decode)
    assert stage.decodes_full_size == (jpeg_decode == "full")
    rng = np.random.default_rng(14)
    data = [encoded(one_over_f(rng, 150 + 60 * i), "JPEG") for i in range(8)]
    data += [encoded(drawing(rng)), b"<html>", data[0][:-30]]
    batch = pa.record_batch({"image": pa.array(data, pa.large_binary())})
    alone = annotated(stage, batch, threads=0, full_size=False, mates=())
    for threads, full_size, mates in (
        (0, False, ("facts",)),
        (2, True, ("facts", "images")),
        (2, False, ("images",)),
        (1, True, ("images", "facts")),
    ):
        found = annotated(stage, batch, threads=threads, full_size=full_size, mates=mates)
        assert found.equals(alone)


def annotated(
    stage: PerceptualHash,
    batch: pa.RecordBatch,
    *,
    threads: int,
    full_size: bool,
    mates: tuple[str, ...],
) -> pa.RecordBatch:
    """Run after ``mates`` have read the same images."""
    with MediaCache(1 << 26, threads, full_size=full_size) as cache:
        media = BatchMedia(batch, caps=MediaCaps(), cache=cache, first_row=0)
        for mate in mates:
            list(getattr(media, mate)())
        return stage.annotate(batch, None, media)


def test_difference_hash_bits() -> None:
    rising = np.tile(np.arange(9, dtype=np.uint8), (8, 1))
    assert difference_hash(np.stack([rising, rising[:, ::-1]])).tolist() == [2**64 - 1, 0]


def area_mean(pixels: np.ndarray, cells: int = 8) -> np.ndarray:
    """Mean over exact fractional cells of the first axis."""
    total = np.concatenate([np.zeros((1, *pixels.shape[1:])), np.cumsum(pixels, axis=0)])
    edge = np.linspace(0, len(pixels), cells + 1)
    whole = np.floor(edge).astype(int).clip(0, len(pixels) - 1)
    at_edge = total[whole] + (edge - whole)[:, None, None] * pixels[whole]
    return np.diff(at_edge, axis=0) * cells / len(pixels)


@pytest.mark.parametrize(
    "size", [(8, 8), (1, 1), (5, 3), (31, 64), (77, 60), (640, 480), (500, 333)]
)
def test_thumbnail_is_the_mean_colour_of_each_cell(size: tuple[int, int]) -> None:
    small = Image.fromarray(np.random.default_rng(8).integers(0, 256, (5, 5, 3), np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    rows = area_mean(np.asarray(image, np.float64))
    expected = area_mean(rows.transpose(1, 0, 2)).transpose(1, 0, 2)
    assert np.abs(thumbnail(image) - expected).max() <= 3
    assert np.abs(thumbnail(image) - expected).mean() <= 0.75


def test_thumbnail_puts_transparency_on_white() -> None:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:32, :, 3] = 255  # black above, clear below
    (row,) = run(BOTH, encoded(Image.fromarray(pixels)))
    cells = np.frombuffer(row["thumbnail"], np.uint8).reshape(8, 8, 3)
    assert (cells[:4] == 0).all()
    assert (cells[4:] == 255).all()
    half = Image.new("RGBA", (40, 40), (200, 0, 0, 128))
    assert np.abs(thumbnail(half)[3, 3].astype(int) - [227, 127, 127]).max() <= 1
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([9, 9, 9])
    (row,) = run(BOTH, encoded(palette, transparency=0))
    assert row["thumbnail"] == b"\xff" * 192


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I;16", "F"])
def test_thumbnail_of_every_mode(mode: str) -> None:
    white = {"CMYK": (0, 0, 0, 0), "LA": (255, 255), "I;16": 65_535}.get(mode, 255)
    image = Image.new(mode, (50, 40), white)
    if mode == "P":
        image = Image.new("RGB", (50, 40), "white").quantize(2)
    assert thumbnail(image).tolist() == np.full((8, 8, 3), 255).tolist()


def test_detail_tells_flat_images_from_real_ones() -> None:
    rng = np.random.default_rng(9)
    assert details(*[flat(rng, side) for side in (1, 40, 300)]).max() == 0
    for sigma, largest in ((1, 0.04), (3, 0.1)):
        assert details(*[flat(rng, s, sigma) for s in (64, 64, 100, 256, 512)]).max() < largest
    assert details(*[gradient(rng, side) for side in (64, 200, 333) * 5]).max() < 0.05
    assert details(*[drawing(rng) for _ in range(30)]).min() > CUT_OFF
    assert details(*[one_over_f(rng, 200) for _ in range(10)]).min() > 2
    assert details(*[one_over_f(rng, 200, contrast=5) for _ in range(10)]).min() > CUT_OFF


def test_detail_says_how_many_bits_a_copy_loses() -> None:
    rng = np.random.default_rng(10)
    weak = [flat(rng, 200, sigma=2) for _ in range(10)] + [gradient(rng, 200) for _ in range(10)]
    strong = [drawing(rng).convert("L") for _ in range(20)]
    for images, is_weak in ((weak, True), (strong, False)):
        copies = [encoded(i.resize((150, 150), Image.Resampling.BICUBIC), "JPEG") for i in images]
        pairs = zip(run(BOTH, *map(encoded, images)), run(BOTH, *copies), strict=True)
        lost = [(a["phash"] ^ b["phash"]).bit_count() for a, b in pairs]
        assert (np.mean(lost) > 10) == is_weak
        assert (np.mean(lost) < 3) == (not is_weak)


def test_detail_is_the_amplitude_of_a_cosine() -> None:
    """Half of the 64 coefficients at +-a: the median distance to their median is a."""
    rng = np.random.default_rng(11)
    signs = rng.permutation(np.repeat([-1.0, 1.0], 32)).reshape(8, 8)
    y = np.cos(np.pi * (np.arange(32) + 0.5)[:, None] * np.arange(8) / 32)
    from winnow.stages.perceptual_hash import image_detail

    scale = np.where(np.arange(8) == 0, 0.5, 1.0)
    field = np.einsum("yu,xv,uv->yx", y * scale, y * scale, signs * 3.0)
    dct = low_frequencies((field + 0.0)[None])
    assert image_detail(dct)[0] == pytest.approx(3.0)


def test_failures_are_codes() -> None:
    good = encoded(Image.new("L", (40, 40)))
    rows = run(BOTH, None, b"<html>", good[:50], good)
    codes = [row["perceptual_hash_error"] for row in rows]
    assert codes == ["missing", "undecodable", "undecodable", None]
    for row in rows[:3]:
        assert set(row.values()) == {None, row["perceptual_hash_error"]}
    assert None not in [v for k, v in rows[3].items() if k != "perceptual_hash_error"]


def test_columns_follow_algorithms() -> None:
    assert PerceptualHash().writes.names == [
        "phash", "thumbnail", "image_detail", "perceptual_hash_error",
    ]  # fmt: skip
    assert PerceptualHash(algorithms=("dhash",)).writes.names[0] == "dhash"
    (row,) = run(
        PerceptualHash(algorithms=("dhash",)), encoded(one_over_f(np.random.default_rng(0), 90))
    )
    assert row["image_detail"] > 1


@pytest.mark.parametrize(
    ("algorithms", "message"),
    [
        ((), "name each of"),
        (("phash", "phash"), "at most once"),
        (("pdq",), "there is no algorithm 'pdq'; known: phash, dhash"),
    ],
)
def test_bad_algorithms(algorithms: tuple, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        PerceptualHash(algorithms=algorithms)

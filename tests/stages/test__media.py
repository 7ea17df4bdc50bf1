"""Decoding: what comes out, what fails how, what is kept, what is decoded again."""

from __future__ import annotations

import io
import itertools
import threading
import time
import warnings
import zlib
from dataclasses import dataclass, replace

import imagehash
import numpy as np
import pyarrow as pa
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from tests.sounds import encoded as encode_sound
from winnow.contracts.media import DecodedAudio, DecodedImage, MediaCaps
from winnow.models.log_mel import LogMel
from winnow.stages import _media
from winnow.stages._media import BatchMedia, MediaCache, decode_audio, decode_image, quiet_pillow

CAPS = MediaCaps()


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def batch_of(*data: bytes | None, column: str = "image") -> pa.RecordBatch:
    return pa.record_batch({column: pa.array(data, pa.large_binary())})


def decoded(data: bytes, caps: MediaCaps = CAPS, min_side: int | None = None) -> DecodedImage:
    image = decode_image(data, caps, min_side)
    assert isinstance(image, DecodedImage), image
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_formats(kind: str) -> None:
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow cannot write {kind}")
    data = encoded(noise(), kind)
    image = decoded(data)
    assert (image.format, image.pixels.size, image.animated, image.alpha) == (
        kind, (40, 30), False, False,
    )  # fmt: skip
    with Image.open(io.BytesIO(data)) as reference:
        assert np.array_equal(np.asarray(image.pixels), np.asarray(reference))
        assert image.pixels.mode == reference.mode


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO", "TGA", "PCX", "ICNS", "SGI"])
def test_formats_outside_the_white_list_are_undecodable(kind: str) -> None:
    assert decode_image(encoded(noise(32, 32), kind), CAPS) == "undecodable"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_exif_transpose_does(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(40, 24), kind, exif=exif)
    image = decoded(data)
    with Image.open(io.BytesIO(data)) as reference:
        upright = ImageOps.exif_transpose(reference)
    assert image.exif_orientation == orientation
    assert np.array_equal(np.asarray(image.pixels), np.asarray(upright))
    assert image.pixels.size == ((24, 40) if orientation > 4 else (40, 24))


@pytest.mark.parametrize("value", [0, 9, 300])
def test_an_orientation_that_means_nothing_is_1(value: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    assert decoded(encoded(noise(), "JPEG", exif=exif)).exif_orientation == 1


def test_damaged_exif_costs_nothing() -> None:
    data = encoded(noise(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(20))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(data).exif_orientation == 1


def test_alpha_and_animation() -> None:
    frames = [noise(seed=i) for i in range(3)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        image = decoded(data)
        assert image.animated, kind
        with Image.open(io.BytesIO(data)) as reference:
            first = np.asarray(reference.convert("RGB"))
        assert np.array_equal(np.asarray(image.pixels.convert("RGB")), first)
    palette = noise().quantize(8)
    assert decoded(encoded(palette, "PNG", transparency=0)).alpha
    assert not decoded(encoded(palette, "PNG")).alpha
    assert decoded(encoded(noise().convert("RGBA"))).alpha
    assert decoded(encoded(noise().convert("LA"))).alpha


def test_a_multi_picture_jpeg_is_a_still_jpeg() -> None:
    image = decoded(encoded(noise(), "MPO", save_all=True, append_images=[noise(seed=1)]))
    assert (image.format, image.animated) == ("JPEG", False)


def test_lab_becomes_rgb_so_that_every_stage_can_use_it() -> None:
    assert decoded(encoded(noise().convert("LAB"), "TIFF")).pixels.mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_pixels_are_what_imagehash_sees(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.asarray(noise())[:, :, 0].astype(np.uint16) * 257)
    else:
        image = noise().convert("RGBA" if mode == "LA" else "RGB").convert(mode)
    data = encoded(image, "TIFF" if mode in ("CMYK", "F") else "PNG")
    with Image.open(io.BytesIO(data)) as opened:
        reference: Image.Image = opened
        if mode == "I;16":  # imagehash would clip it at 255
            reference = Image.fromarray((np.asarray(opened) // 256).astype(np.uint8))
        assert imagehash.phash(decoded(data).pixels) == imagehash.phash(reference)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_its_upper_8_bits(kind: str) -> None:
    """As Pillow reads 16-bit colour; clipped at 255, a depth map or an X-ray would be white."""
    levels = (np.arange(48 * 40, dtype=np.uint32).reshape(40, 48) * 34).astype(np.uint16)
    found = decoded(encoded(Image.fromarray(levels), kind))
    assert (found.pixels.mode, found.alpha) == ("L", False)
    assert np.array_equal(np.asarray(found.pixels), levels // 256)


def test_a_transparent_level_of_16_bit_grey_is_exact() -> None:
    """Level 0x1234 is clear; 0x1235, the same in 8 bits, is not."""
    levels = np.array([[0x1234, 0x1235], [0xFFFF, 0]], np.uint16)
    found = decoded(encoded(Image.fromarray(levels), "PNG", transparency=0x1234))
    assert (found.pixels.mode, found.alpha) == ("LA", True)
    grey_and_alpha = np.asarray(found.pixels)
    assert grey_and_alpha[..., 1].tolist() == [[0, 255], [255, 255]]
    assert grey_and_alpha[..., 0].tolist() == [[0x12, 0x12], [0xFF, 0]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_is_undecodable(kind: str) -> None:
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    data = encoded(noise(200, 150), kind)
    for share in (0.3, 0.7, 0.95):
        assert decode_image(data[: int(len(data) * share)], CAPS) == "undecodable"


def test_the_cap_is_read_from_the_header_before_decoding() -> None:
    bomb = encoded(Image.new("1", (40_000, 30_000)))
    started = time.thread_time()
    assert decode_image(bomb, CAPS) == "too_large"
    assert time.thread_time() - started < 0.5  # decoding takes seconds
    just = MediaCaps(max_pixels=1200)
    assert isinstance(decode_image(encoded(noise(40, 30)), just), DecodedImage)
    assert decode_image(encoded(noise(40, 31)), just) == "too_large"
    # The header alone decides, however broken the rest is.
    assert decode_image(bomb[:60], CAPS) == "too_large"


def test_a_cap_above_pillows_own_limit_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    batch = batch_of(encoded(noise(40, 30)))
    with MediaCache(1 << 20, 0) as cache:
        caps = MediaCaps(max_pixels=1200)
        (image,) = BatchMedia(batch, caps=caps, cache=cache, first_row=0).images()
    assert isinstance(image, DecodedImage)


def test_a_gif_frame_larger_than_its_header_is_capped() -> None:
    data = bytearray(encoded(Image.new("P", (500, 400)), "GIF"))
    data[6:10] = (4).to_bytes(2, "little") * 2  # the screen says 4 x 4
    assert decode_image(bytes(data), MediaCaps(max_pixels=1000)) == "too_large"


BASES = [
    encoded(noise(24, 24), kind)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    if kind in Image.SAVE
]


@settings(max_examples=400, deadline=None)
@given(
    base=st.sampled_from(BASES),
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=8)), max_size=6),
    cut=st.integers(0, 10_000),
)
def test_hostile_bytes_never_raise(base: bytes, edits: list, cut: int) -> None:
    data = bytearray(base)
    for position, patch in edits:
        position %= len(data)
        data[position : position + len(patch)] = patch
    image = decode_image(bytes(data[: cut or None]), MediaCaps(max_pixels=1_000_000))
    if isinstance(image, DecodedImage):
        for mode in ("L", "RGB", "RGBA"):
            image.pixels.convert(mode)
    else:
        assert image in ("undecodable", "too_large")


@given(st.binary(max_size=200))
def test_random_bytes_are_undecodable(data: bytes) -> None:
    assert decode_image(data, CAPS) == "undecodable"


def test_pillows_warnings_are_silenced_and_no_others() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with quiet_pillow(), quiet_pillow():
            warnings.warn_explicit("x", UserWarning, "f", 1, module="PIL.Image")
            with pytest.raises(UserWarning, match="mine"):
                warnings.warn("mine", stacklevel=1)
        assert warnings.filters == before
        with pytest.raises(UserWarning, match="x"):
            warnings.warn_explicit("x", UserWarning, "f", 1, module="PIL.Image")


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    return noise(9, 7, seed).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "min_side", "scale"),
    [
        ((640, 480), 64, 4),
        ((1100, 512), 64, 8),
        ((5000, 128), 64, 2),
        ((5000, 127), 64, 1),
        ((40, 30), 1, 8),
    ],
)
def test_a_jpeg_is_reduced_as_far_as_its_shorter_side_allows(
    size: tuple[int, int], min_side: int, scale: int
) -> None:
    data = encoded(smooth(*size), "JPEG")
    image = decoded(data, min_side=min_side)
    assert (image.scale, image.size) == (scale, size)
    assert image.pixels.size == (-(-size[0] // scale), -(-size[1] // scale))
    assert (image.covered is None) == (scale == 1)
    assert decoded(data).size == size


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_other_formats_are_never_reduced(kind: str) -> None:
    data = encoded(smooth(300, 200), kind)
    image = decoded(data, min_side=64)
    assert (image.scale, image.covered) == (1, None)
    assert np.array_equal(np.asarray(image.pixels), np.asarray(decoded(data).pixels))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_what_is_covered_turns_with_the_picture(orientation: int) -> None:
    """Reduced pixels, stretched over what they cover, lie on the picture at full size."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(523, 517), "JPEG", exif=exif, quality=95)
    full, image = decoded(data), decoded(data, min_side=64)
    assert image.scale == 8
    assert (image.size, image.exif_orientation) == (full.pixels.size, orientation)
    assert image.covered is not None
    left, upper, right, lower = image.covered
    width, height = image.size
    assert (right - left, lower - upper) == (width / 8, height / 8)
    y, x = np.mgrid[: image.pixels.height, : image.pixels.width]
    expected = np.asarray(full.pixels.convert("L"), np.float64)
    at_x = ((x - left) * 8 + 3.5).round().astype(int).clip(0, width - 1)
    at_y = ((y - upper) * 8 + 3.5).round().astype(int).clip(0, height - 1)
    inner = (slice(1, -1), slice(1, -1))
    found = np.asarray(image.pixels.convert("L"), np.float64)
    assert np.abs(found - expected[at_y, at_x])[inner].mean() < 1.5
    wrong = expected[at_y, (at_x + 5).clip(0, width - 1)]
    assert np.abs(found - wrong)[inner].mean() > 2  # half a reduced pixel would be seen


def jpegs() -> list[bytes]:
    """Every way to store a JPEG that Pillow can write."""
    image, found = noise(45, 33).resize((180, 131), Image.Resampling.BICUBIC), []
    for mode, options in (
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 2, "quality": 30}),
        ("RGB", {"subsampling": 1, "optimize": True}),
        ("RGB", {"progressive": True}),
        ("RGB", {"keep_rgb": True}),
        ("RGB", {"restart_marker_rows": 1}),
        ("L", {}),
        ("L", {"progressive": True}),
        ("CMYK", {}),
    ):
        found.append(encoded(image.convert(mode), "JPEG", **options))
    return [*found, encoded(image, "MPO", save_all=True, append_images=[image])]


def damaged(rng: np.random.Generator, data: bytes) -> bytes:
    """Cut, edit, delete, insert or blank a part, at the head or anywhere."""
    broken, kind = bytearray(data), rng.integers(6)
    at = int(rng.integers(len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[: len(data) - int(rng.integers(1, 40))]
    for _ in range(int(rng.integers(1, 5))):
        if kind == 2:
            broken[int(rng.integers(len(broken)))] = int(rng.integers(256))
        elif kind == 3:
            broken[int(rng.integers(min(700, len(broken))))] = int(rng.integers(256))
        elif kind == 4:
            del broken[at : at + int(rng.integers(1, 100))]
        else:
            broken[at:at] = rng.bytes(int(rng.integers(1, 100)))
    return bytes(broken)


def test_a_reduced_decode_judges_damage_as_a_full_one_does() -> None:
    """2,500 damaged files: the same code, or the same facts."""
    rng, bases, caps = np.random.default_rng(0), jpegs(), MediaCaps(max_pixels=10_000_000)
    verdicts = []
    for i in range(2_500):
        data = damaged(rng, bases[i % len(bases)])
        full, image = decode_image(data, caps), decode_image(data, caps, 64)
        if isinstance(full, str) or isinstance(image, str):
            assert image == full
        else:
            assert facts_of(image) == facts_of(full)
        verdicts.append(full if isinstance(full, str) else "decoded")
    assert min(verdicts.count("undecodable"), verdicts.count("decoded")) > 500


def facts_of(image: DecodedImage) -> tuple[object, ...]:
    return (
        image.format, image.size, image.exif_orientation, image.animated, image.alpha,
        image.pixels.mode,
    )  # fmt: skip


def test_the_cap_counts_the_pixels_of_the_file() -> None:
    data = encoded(smooth(300, 200), "JPEG")
    assert decode_image(data, MediaCaps(max_pixels=59_999), 64) == "too_large"
    assert decoded(data, MediaCaps(max_pixels=60_000), 64).size == (300, 200)


def test_sizes_are_kept_apart_and_shared_where_they_are_one() -> None:
    data = [
        encoded(smooth(300, 200), "JPEG"),
        encoded(smooth(120, 100), "JPEG"),  # too small to reduce
        encoded(smooth(300, 200)),
        b"not an image",
    ]
    alone = [decode_image(d, CAPS, 64) for d in data]
    for order in ((None, 64, None, 64), (64, None, 64, None)):
        with MediaCache(1 << 24, 0) as cache:
            media = BatchMedia(batch_of(*data), caps=CAPS, cache=cache, first_row=0)
            for min_side in order:
                found = list(media.images(min_side=min_side))
                for one, image in zip(alone, found, strict=True):
                    if isinstance(one, DecodedImage):
                        assert isinstance(image, DecodedImage)
                        assert image.scale == (one.scale if min_side else 1)
                        if min_side:
                            assert np.array_equal(np.asarray(image.pixels), np.asarray(one.pixels))
                    else:
                        assert image == "undecodable"
            assert cache.num_decoded == 5  # the first JPEG at two sizes, the others once


@pytest.mark.parametrize(
    ("full_size", "first", "num_decoded", "scale"),
    [
        (False, None, 1, 2),  # facts alone
        (False, 64, 1, 2),
        (False, "full", 1, 1),
        (True, None, 1, 1),
        (True, 64, 2, 1),
    ],
)
def test_facts_take_the_decode_that_the_pass_makes(
    full_size: bool, first: object, num_decoded: int, scale: int
) -> None:
    data = encoded(smooth(300, 200), "JPEG")
    with MediaCache(1 << 24, 0, full_size=full_size) as cache:
        media = BatchMedia(batch_of(data), caps=CAPS, cache=cache, first_row=0)
        if first is not None:
            list(media.images(min_side=None if first == "full" else 64))
        (image,) = media.facts()
        assert isinstance(image, DecodedImage)
        assert (image.size, image.scale, cache.num_decoded) == ((300, 200), scale, num_decoded)


def read(cache: MediaCache, batch: pa.RecordBatch, first_row: int = 0) -> list:
    return list(BatchMedia(batch, caps=CAPS, cache=cache, first_row=first_row).images())


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_rows_come_in_order(threads: int) -> None:
    images = [noise(20 + i, 20) for i in range(30)]
    data: list[bytes | None] = [
        encoded(i, "WEBP" if n % 3 else "PNG") for n, i in enumerate(images)
    ]
    data[4], data[7] = None, b"not an image"
    with MediaCache(1 << 20, threads) as cache:
        rows = read(cache, batch_of(*data))
    assert rows[4] == "missing"
    assert rows[7] == "undecodable"
    widths = [r.pixels.width for r in rows if isinstance(r, DecodedImage)]
    assert widths == [20 + i for i in range(30) if i not in (4, 7)]


@pytest.mark.parametrize("threads", [0, 2])
def test_a_second_stage_gets_the_same_pixels(threads: int) -> None:
    data = [encoded(noise(seed=i)) for i in range(20)]
    with MediaCache(1 << 24, threads) as cache:
        first = read(cache, batch_of(*data), first_row=100)
        # Another stage cuts its batches elsewhere; rows are known by their absolute number.
        again = read(cache, batch_of(*data[5:9]), first_row=105)
        assert [a.pixels is b.pixels for a, b in zip(first[5:9], again, strict=True)] == [True] * 4
        assert cache.num_decoded == 20


def test_columns_are_kept_apart_and_a_gated_row_is_only_hidden() -> None:
    with MediaCache(1 << 24, 0) as cache:
        first = read(cache, batch_of(encoded(noise(20, 20))))
        assert read(cache, batch_of(None)) == ["missing"]
        assert read(cache, batch_of(encoded(noise(20, 20))))[0] is first[0]
        other = BatchMedia(
            batch_of(encoded(noise(9, 9)), column="other"), caps=CAPS, cache=cache, first_row=0
        )
        assert next(other.images("other")).pixels.size == (9, 9)


def test_the_budget_holds_and_evicted_rows_are_decoded_again() -> None:
    data = [encoded(noise(100, 100, seed=i)) for i in range(10)]  # 40,000 bytes each
    with MediaCache(4 * 40_000, 0) as cache:
        first = read(cache, batch_of(*data))
        assert cache.num_decoded == 10
        second = read(cache, batch_of(*data))
        # 4 of 10 fit; a cache that dropped the oldest would find none of them.
        assert cache.num_decoded == 16
        assert cache._kept_bytes <= cache.budget_bytes
        for a, b in zip(first, second, strict=True):
            assert np.array_equal(np.asarray(a.pixels), np.asarray(b.pixels))


def test_stages_that_take_turns_on_each_batch_share_it_too() -> None:
    batches = [[encoded(noise(100, 100, seed=i + 4 * b)) for i in range(4)] for b in range(5)]
    with MediaCache(4 * 40_000, 0) as cache:
        for b, data in enumerate(batches):
            read(cache, batch_of(*data), first_row=4 * b)
            read(cache, batch_of(*data), first_row=4 * b)
        assert cache.num_decoded == 20


def test_look_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    original = decode_image

    def counting(data: bytes, caps: MediaCaps, min_side: int | None) -> object:
        started.append(1)
        return original(data, caps, min_side)

    monkeypatch.setattr(_media, "decode_image", counting)
    batch = batch_of(*[encoded(noise(100, 100, seed=i)) for i in range(60)])
    with MediaCache(1 << 26, 3) as cache:
        images = BatchMedia(batch, caps=CAPS, cache=cache, first_row=0).images()
        for _ in range(5):
            next(images)
        time.sleep(0.2)
        assert 5 < len(started) <= 5 + 2 * 3 + 1
        images.close()
    with MediaCache(40_000, 3) as cache:  # room for one: only what the threads are busy with
        started.clear()
        images = BatchMedia(batch, caps=CAPS, cache=cache, first_row=0).images()
        for _ in range(20):
            next(images)
            time.sleep(0.005)
        assert len(started) <= 20 + 2 * 3 + 1
        images.close()


def test_decoding_runs_beside_the_reader_and_close_ends_its_threads() -> None:
    cache = MediaCache(1 << 26, 2)
    read(cache, batch_of(*[encoded(noise(seed=i)) for i in range(8)]))
    mine = [t for t in threading.enumerate() if t.name.startswith("decode")]
    assert 1 <= len(mine) <= 2
    cache.close()
    assert not any(t.is_alive() for t in mine)


def test_an_unknown_column_is_an_error_of_the_caller() -> None:
    with MediaCache(1, 0) as cache, pytest.raises(KeyError):
        next(BatchMedia(batch_of(b""), caps=CAPS, cache=cache, first_row=0).images("picture"))


def sounds(*kinds: str) -> list[bytes]:
    return [encode_sound(kind, 0.5, 44_100, 2) for kind in kinds]


def sound_batch(*data: bytes | None) -> pa.RecordBatch:
    return batch_of(*data, column="audio")


def media_of(cache: MediaCache, *data: bytes | None, first_row: int = 0) -> BatchMedia:
    return BatchMedia(sound_batch(*data), caps=CAPS, cache=cache, first_row=first_row)


LOG_MEL = LogMel(sample_rate=16_000, n_fft=400, hop=160, num_bins=20)


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_recordings_waveforms_and_features_of_a_row_are_one_decode(threads: int) -> None:
    data = sounds("wav", "flac", "mp3", "opus")
    with MediaCache(1 << 28, threads) as cache:
        media = media_of(cache, *data, None, b"<html>")
        features = list(media.features(feature=LOG_MEL))
        waves = list(media.waveforms(sample_rate=16_000))
        recordings = list(media.audio())
        other = list(media.waveforms(sample_rate=8_000))
        again = list(media.features(feature=replace(LOG_MEL)))
        assert cache.num_decoded == 5  # the rows that have bytes
    for rows in (features, waves, recordings, other):
        assert rows[4:] == ["missing", "undecodable"]
    for row, encoded_bytes in enumerate(data):
        alone = decode_audio(encoded_bytes, CAPS)
        assert isinstance(alone, DecodedAudio)
        assert np.array_equal(recordings[row].samples, alone.samples)
        for rate, found in ((16_000, waves[row]), (8_000, other[row])):
            expected = soxr.resample(alone.samples.mean(0), alone.sample_rate, rate, "HQ")
            assert np.array_equal(found, expected)
        assert np.array_equal(features[row], LOG_MEL.compute(waves[row]))
        assert again[row] is features[row]


def test_stages_in_any_order_share_one_decode() -> None:
    data = sounds("wav", "flac")
    asks = {
        "audio": lambda m: m.audio(),
        "waveforms": lambda m: m.waveforms(sample_rate=16_000),
        "features": lambda m: m.features(feature=LOG_MEL),
        "native": lambda m: m.waveforms(sample_rate=44_100),
    }
    found: dict[str, list] = {}
    for order in itertools.permutations(asks):
        with MediaCache(1 << 28, 0) as cache:
            media = media_of(cache, *data)
            for name in order:
                values = [getattr(v, "samples", v) for v in asks[name](media)]
                first = found.setdefault(name, values)
                assert all(np.array_equal(a, b) for a, b in zip(first, values, strict=True))
            assert cache.num_decoded == 2, order


def test_a_mono_recording_at_its_own_rate_is_kept_once() -> None:
    data = encode_sound("wav", 0.5)
    with MediaCache(1 << 24, 0) as cache:
        media = media_of(cache, data)
        (recording,) = media.audio()
        (wave,) = media.waveforms(sample_rate=16_000)
        assert np.shares_memory(wave, recording.samples)
        assert cache._kept_bytes == recording.samples.nbytes
        assert cache.num_decoded == 1


def test_a_feature_is_computed_once_of_the_waveform_that_is_kept() -> None:
    calls: list[int] = []

    @dataclass(frozen=True)
    class Loudness:
        sample_rate: int = 16_000

        def compute(self, samples_N: np.ndarray) -> np.ndarray:  # noqa: N803
            calls.append(len(samples_N))
            return np.array([np.abs(samples_N).max()], np.float32)

    with MediaCache(1 << 28, 2) as cache:
        media = media_of(cache, *sounds("wav", "mp3", "flac"))
        first = list(media.features(feature=Loudness()))
        assert list(media.features(feature=Loudness())) == first
    assert calls == [8_000] * 3


def test_what_nobody_asked_for_makes_room_first() -> None:
    """Of 18 rows the waveforms fit (32,000 bytes each), and one row's samples (176,400)."""
    data = [encode_sound("wav", 0.5, 44_100, 2) for _ in range(18)]
    with MediaCache(18 * 32_000 + 176_400 + 100, 0) as cache:
        media = media_of(cache, *data)
        waves = list(media.waveforms(sample_rate=16_000))
        assert cache.num_decoded == 18
        assert cache._kept_bytes <= cache.budget_bytes
        again = list(media.waveforms(sample_rate=16_000))
        assert all(a is b for a, b in zip(waves, again, strict=True))
        assert cache.num_decoded == 18
        next(media.audio())  # still there, of the first row
        assert cache.num_decoded == 18


def test_dropped_samples_are_decoded_again_to_the_same_values() -> None:
    data = sounds("mp3", "opus", "flac")
    with MediaCache(1, 2) as cache:
        media = media_of(cache, *data)
        first, second = list(media.audio()), list(media.audio())
        assert cache.num_decoded == 6
        assert cache._kept_bytes == 0
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.samples, b.samples)


def test_pictures_and_sounds_share_one_budget_and_keep_apart() -> None:
    picture, sound = encoded(noise(20, 20)), encode_sound("wav", 0.2)
    batch = pa.record_batch(
        {
            "image": pa.array([picture], pa.large_binary()),
            "audio": pa.array([sound], pa.large_binary()),
        }
    )
    with MediaCache(1 << 24, 0) as cache:
        media = BatchMedia(batch, caps=CAPS, cache=cache, first_row=0)
        assert isinstance(next(media.images()), DecodedImage)
        assert isinstance(next(media.audio()), DecodedAudio)
        assert next(media.images("audio")) == next(media.audio("image")) == "undecodable"
        assert isinstance(next(media.audio()), DecodedAudio)
        assert isinstance(next(media.images()), DecodedImage)
        assert cache.num_decoded == 4


def test_a_failure_of_sound_is_kept() -> None:
    with MediaCache(1 << 24, 0) as cache:
        media = media_of(cache, b"<html>")
        for rows in (media.audio(), media.waveforms(sample_rate=8_000)):
            assert list(rows) == ["undecodable"]
        assert list(media.features(feature=LOG_MEL)) == ["undecodable"]
        assert cache.num_decoded == 1


def test_the_caps_of_the_recipe_hold_for_sound() -> None:
    with MediaCache(1 << 24, 0) as cache:
        media = BatchMedia(
            sound_batch(encode_sound("wav", 0.5)),
            caps=MediaCaps(max_duration_s=0.4), cache=cache, first_row=0,
        )  # fmt: skip
        assert list(media.waveforms(sample_rate=16_000)) == ["too_long"]


def test_more_transparencies_than_a_palette_has_colours_are_none() -> None:
    """libpng leaves such a chunk out; Pillow takes it and then converts the picture to nothing."""
    plain = encoded(noise().quantize(4))
    at = plain.index(b"IDAT") - 4
    values = b"tRNS" + bytes(257)
    chunk = (257).to_bytes(4, "big") + values + zlib.crc32(values).to_bytes(4, "big")
    image = decoded(plain[:at] + chunk + plain[at:])
    assert (image.pixels.mode, image.alpha) == ("P", False)
    expected = decoded(plain).pixels.convert("RGBA")
    assert image.pixels.convert("RGBA").tobytes() == expected.tobytes()

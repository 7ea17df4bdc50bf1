"""Bit for bit against Pillow, whatever the image, size and path taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from winnow.stages import _lanczos
from winnow.stages._lanczos import grey_pixels, integer_weights, lanczos_grids

SIZES = [(32, 32), (9, 8)]
Rng = np.random.Generator


def noise(rng: Rng, h: int, w: int) -> np.ndarray:
    return rng.integers(0, 256, (h, w), np.uint8)


def black_and_white(rng: Rng, h: int, w: int) -> np.ndarray:
    return np.where(rng.random((h, w)) < 0.5, 0, 255).astype(np.uint8)


def flat(rng: Rng, h: int, w: int) -> np.ndarray:
    return np.full((h, w), rng.integers(256), np.uint8)


def gradient(rng: Rng, h: int, w: int) -> np.ndarray:
    return np.add.outer(np.linspace(0, 99, h), np.linspace(0, 156, w)).astype(np.uint8)


def smooth(rng: Rng, h: int, w: int) -> np.ndarray:
    small = Image.fromarray(noise(rng, 9, 9))
    return np.asarray(small.resize((w, h), Image.Resampling.BICUBIC))


def checkerboard(rng: Rng, h: int, w: int) -> np.ndarray:
    """The worst case: every value lies on a rounding boundary."""
    return ((np.add.outer(np.arange(h), np.arange(w)) % 2) + 100).astype(np.uint8)


@pytest.mark.parametrize("make", [noise, black_and_white, flat, gradient, smooth, checkerboard])
def test_equals_pillow(make: Callable[[Rng, int, int], np.ndarray]) -> None:
    rng = np.random.default_rng(7)
    shapes = [(rng.integers(1, 600), rng.integers(1, 600)) for _ in range(60)]
    shapes += [
        (64, 64),
        (63, 64),
        (64, 63),
        (96, 64),
        (97, 64),
        (1000, 501),
        (300, 4000),
        (66, 20_000),
    ]
    for h, w in shapes:
        image = Image.fromarray(make(rng, h, w))
        for size, grid in zip(SIZES, lanczos_grids(image, SIZES), strict=True):
            expected = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
            assert np.array_equal(grid, expected), (h, w, size)


def test_the_fast_path_is_taken_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    assert _lanczos._same_as_pillow()
    monkeypatch.setattr(_lanczos, "_by_pillow", fail)
    rng = np.random.default_rng(0)
    lanczos_grids(Image.fromarray(smooth(rng, 480, 640)), SIZES)
    with pytest.raises(AssertionError):
        lanczos_grids(Image.fromarray(smooth(rng, 40, 640)), SIZES)


def test_a_foreign_pillow_only_costs_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lanczos, "_same_as_pillow", lambda: False)
    image = Image.fromarray(noise(np.random.default_rng(1), 200, 200))
    expected = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))
    assert np.array_equal(lanczos_grids(image, [(32, 32)])[0], expected)


@pytest.mark.parametrize("width", [64, 65, 100, 333, 640, 1001, 1280])
@pytest.mark.parametrize("out_width", [8, 9, 32])
def test_integer_weights_are_pillows_own(width: int, out_width: int) -> None:
    """Impulses of 2**22 in an integer image make Pillow print its weights."""
    impulses = np.diag(np.full(width, 1 << 22, np.int32))
    image = Image.fromarray(impulses).resize((out_width, width), Image.Resampling.LANCZOS)
    first, weights = integer_weights(width, out_width)
    dense = np.zeros((width, out_width), np.int64)
    for x in range(out_width):
        dense[first[x] : first[x] + weights.shape[1], x] = weights[x]
    assert np.array_equal(dense, np.asarray(image))


def test_float_sums_stay_within_their_stated_error() -> None:
    rng = np.random.default_rng(3)
    for width in (64, 500, 1280, 3000):
        pixels = black_and_white(rng, 50, width)
        weights = _lanczos._weights(width, 32)
        centred = pixels.astype(np.float32) - 128
        sums = np.zeros((50, 32), np.float32)
        for _, columns, outputs, k in weights.bands:
            sums[:, outputs] += centred[:, columns] @ k
        first, exact = integer_weights(width, 32)
        positions = first[:, None] + np.arange(exact.shape[1])
        truth = (pixels[:, positions].astype(np.int64) * exact).sum(axis=2) / 2**22 + 0.5
        least = sums + weights.least
        assert (least <= truth).all()
        assert (truth <= (least + weights.spread).astype(np.float64)).all()
        assert weights.spread.max() < 0.04  # or too much would be summed again


def test_pixels_are_lent_or_copied() -> None:
    image = Image.fromarray(noise(np.random.default_rng(0), 50, 70))
    assert np.array_equal(grey_pixels(image), np.asarray(image))
    large = Image.new("L", (5000, 4000), 7)  # more than one of Pillow's memory blocks
    assert (grey_pixels(large) == 7).all()
    assert grey_pixels(large).shape == (4000, 5000)

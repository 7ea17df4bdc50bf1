"""Pillow's Lanczos reduction of a grey image, bit for bit, several times faster.

Pillow shrinks in two passes of fixed-point sums, ``(sum(k * pixel) + 2**21) >> 22``: along rows
first, where 80 % of the time of a perceptual hash goes. Here that pass is a few float32 matrix
products, each followed by a proof: where the float32 sum is further from a rounding boundary than
its worst possible error, the rounded value is Pillow's; the few other pixels are summed again in
integers. The second pass runs over a few columns only and is done in float64, which holds every
sum exactly.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

_PRECISION_BITS = 22
_RADIUS = 3.0
_BAND = 8
"""Output columns per matrix product: wide enough for the product to be fast, narrow enough that
most of the weights in it are not zero."""
_MAX_TERMS = 1024
"""Terms of one float32 sum: its error bound grows with them."""
_SMALLEST, _LARGEST = 64, 16_384
"""Widths outside this range are left to Pillow: too small to gain, or weights too large to keep."""
_BLOCK_ELEMENTS = 1 << 20
"""Pixels per block: bounds the memory of the float32 copy (4 MB a thread)."""
_HIGHEST = 255.5
"""Larger sums are cut to this, which ``spread`` does not lift to 256."""
_MAX_DOUBTFUL = 1 / 32
"""Share of values to be summed again above which Pillow is faster (dithered images)."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class _Weights:
    """The row pass from one width to another."""

    bands: tuple[tuple[bool, slice, slice, NDArray[np.float32]], ...]
    """(whether it is the first for its outputs, input columns, output columns, weights)."""
    least: NDArray[np.float32]
    """Per output column: what centring the pixels on 0 took away, plus 1/2 for rounding, minus the
    bound on the error of the float32 sum: added to a sum, the least that the true one can be."""
    spread: NDArray[np.float32]
    """Per output column: twice that bound."""
    first: NDArray[np.int64]
    exact: NDArray[np.int32]
    """Per output column: Pillow's integer weights and the input column where they begin."""


def lanczos_grids(
    grey: Image.Image,
    sizes: Sequence[tuple[int, int]],
    box: tuple[float, float, float, float] | None = None,
) -> list[Pixels]:
    """Return ``np.asarray(grey.resize(size, LANCZOS, box))`` for each size; mode "L" only."""
    if box is not None:
        return [_by_pillow(grey, size, box) for size in sizes]
    fast = all(_is_rows_first(grey.size, size) for size in sizes) and _same_as_pillow()
    narrow = _shrink_rows(grey_pixels(grey), [w for w, _ in sizes]) if fast else None
    if narrow is None:
        return [_by_pillow(grey, size) for size in sizes]
    return [_shrink_columns(n, h) for n, (_, h) in zip(narrow, sizes, strict=True)]


def grey_pixels(grey: Image.Image) -> Pixels:
    """Return the pixels of a mode "L" image, without a copy where Pillow can lend them."""
    try:
        return np.asarray(pa.array(grey)).reshape(grey.height, grey.width)
    except (AttributeError, TypeError, ValueError, pa.ArrowException):
        # Pillow before 11.2, or an image larger than one of Pillow's memory blocks.
        return np.asarray(grey)


def _is_rows_first(size: tuple[int, int], out_size: tuple[int, int]) -> bool:
    """Whether Pillow shrinks along rows first, and it pays to do that here.

    Pillow 13 shrinks along columns first where the height loses more than twice what the width
    loses; earlier ones only above 100 times.
    """
    (width, height), (out_width, out_height) = size, out_size
    return (
        _SMALLEST <= width <= _LARGEST
        and height >= _SMALLEST
        and 2 * out_width <= width
        and 2 * out_height <= height
        and height - out_height <= 2 * (width - out_width)
    )


def _by_pillow(
    grey: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    return np.asarray(grey.resize(size, Image.Resampling.LANCZOS, box))


def _shrink_rows(pixels_HW: Pixels, widths: Sequence[int]) -> list[Pixels] | None:
    """Return the row pass to each width, or None where too much of it would be summed twice."""
    height, width = pixels_HW.shape
    weights = [_weights(width, w) for w in widths]
    sums = [np.empty((height, w), np.float32) for w in widths]
    num_rows = min(height, max(16, _BLOCK_ELEMENTS // width))
    signed, centred = _scratch(num_rows * width)
    for top in range(0, height, num_rows):
        rows = slice(top, min(top + num_rows, height))
        block_HW = pixels_HW[rows]
        signed_HW = signed[: block_HW.size].reshape(block_HW.shape)
        centred_HW = centred[: block_HW.size].reshape(block_HW.shape)
        # Flipping the top bit is subtracting 128 into int8; numpy converts int8 fast.
        np.bitwise_xor(block_HW, 0x80, out=signed_HW)
        np.copyto(centred_HW, signed_HW.view(np.int8))
        for w, sums_HX in zip(weights, sums, strict=True):
            for is_first, columns, outputs, k in w.bands:
                part_HX = sums_HX[rows, outputs]
                if is_first:
                    np.matmul(centred_HW[:, columns], k, out=part_HX)
                else:
                    part_HX += centred_HW[:, columns] @ k
    narrow = []
    for w, sums_HX in zip(weights, sums, strict=True):
        rounded_HX = _round(pixels_HW, sums_HX, w)
        if rounded_HX is None:
            return None
        narrow.append(rounded_HX)
    return narrow


_buffers = threading.local()


def _scratch(size: int) -> tuple[Pixels, NDArray[np.float32]]:
    """Return this thread's buffers: the pages of fresh ones would cost as much as the sums."""
    if getattr(_buffers, "size", 0) < size:
        _buffers.size = size
        _buffers.arrays = np.empty(size, np.uint8), np.empty(size, np.float32)
    arrays: tuple[Pixels, NDArray[np.float32]] = _buffers.arrays
    return arrays


def _round(pixels_HW: Pixels, sums_HX: NDArray[np.float32], weights: _Weights) -> Pixels | None:
    """Round the sums (which are overwritten) as Pillow does; None where most would be doubtful."""
    least_HX = np.add(sums_HX, weights.least, out=sums_HX)
    np.clip(least_HX, 0, _HIGHEST, out=least_HX)
    rounded_HX = least_HX.astype(np.uint8)
    most_HX = np.add(least_HX, weights.spread, out=sums_HX)
    at = np.flatnonzero(rounded_HX != most_HX.astype(np.uint8))
    if len(at) > _MAX_DOUBTFUL * rounded_HX.size + 16:
        return None
    if len(at):
        rows, columns = np.divmod(at, rounded_HX.shape[1])
        start = rows * pixels_HW.shape[1] + weights.first[columns]
        taken = pixels_HW.reshape(-1)[start[:, None] + np.arange(weights.exact.shape[1])]
        total = np.einsum("nk,nk->n", taken, weights.exact[columns], dtype=np.int64)
        exact = (total + (1 << (_PRECISION_BITS - 1))) >> _PRECISION_BITS
        rounded_HX.reshape(-1)[at] = exact.clip(0, 255)
    return rounded_HX


def _shrink_columns(narrow_HX: Pixels, out_height: int) -> Pixels:
    """Return the column pass: so few columns that float64, which is exact here, costs nothing."""
    total_YX = _column_weights(narrow_HX.shape[0], out_height) @ narrow_HX.astype(np.float64)
    total_YX += 1 << (_PRECISION_BITS - 1)
    return np.floor(total_YX * 2.0**-_PRECISION_BITS).clip(0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=256)
def _column_weights(height: int, out_height: int) -> NDArray[np.float64]:
    first, exact = integer_weights(height, out_height)
    dense_YH = np.zeros((out_height, height))
    positions = first[:, None] + np.arange(exact.shape[1])
    dense_YH[np.arange(out_height)[:, None], positions] = exact
    return dense_YH


@functools.lru_cache(maxsize=256)
def _weights(width: int, out_width: int) -> _Weights:
    first, exact = integer_weights(width, out_width)
    num_weights = exact.shape[1]
    real = exact / 2.0**_PRECISION_BITS
    dense_WX = np.zeros((width, out_width), np.float32)
    positions = first[:, None] + np.arange(num_weights)
    dense_WX[positions, np.arange(out_width)[:, None]] = real
    bands = []
    band = _BAND if out_width >= 2 * _BAND else out_width
    for left in range(0, out_width, band):
        right = min(left + band, out_width)
        begin, end = int(first[left]), int(first[right - 1]) + num_weights
        for start in range(begin, end, _MAX_TERMS):
            columns = slice(start, min(start + _MAX_TERMS, end))
            k = np.ascontiguousarray(dense_WX[columns, left:right])
            bands.append((start == begin, columns, slice(left, right), k))
    # n products and n - 1 sums in any order err by at most n u / (1 - n u) of sum(|k| |pixel|),
    # u = 2**-24 (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Centred
    # pixels are at most 128; 1.01 covers the denominator. Adding up bands, ``least`` and ``spread``
    # (which are rounded themselves) are at most ``num_sums`` more roundings of values below 512.
    num_terms = min(num_weights, _MAX_TERMS)
    num_sums = width // _MAX_TERMS + 6
    error = 1.01 * num_terms * 2.0**-24 * 128 * np.abs(real).sum(axis=1) + num_sums * 2.0**-15
    return _Weights(
        bands=tuple(bands),
        least=(128 * real.sum(axis=1) + 0.5 - error).astype(np.float32),
        spread=(2 * error).astype(np.float32),
        first=first,
        exact=exact,
    )


@functools.lru_cache(maxsize=1024)
def integer_weights(width: int, out_width: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return Pillow's 8-bit Lanczos weights: (first input column, weights) per output column.

    Formulas of Pillow's Resample.c (precompute_coeffs, normalize_coeffs_8bpc), for shrinking.
    """
    scale = width / out_width
    support = _RADIUS * scale
    center = (np.arange(out_width) + 0.5) * scale
    low = np.maximum(0, (center - support + 0.5).astype(np.int64))
    high = np.minimum(width, (center + support + 0.5).astype(np.int64))
    num_weights = min(width, math.ceil(support) * 2 + 1)
    first = np.minimum(low, width - num_weights)
    position = first[:, None] + np.arange(num_weights)
    kernel = _lanczos((position - center[:, None] + 0.5) * (1.0 / scale))
    kernel[(position < low[:, None]) | (position >= high[:, None])] = 0.0
    # cumsum adds from left to right, as Pillow does; sum() would not.
    kernel /= np.cumsum(kernel, axis=1)[:, -1:]
    kernel *= 1 << _PRECISION_BITS
    return first, np.trunc(kernel + np.copysign(0.5, kernel)).astype(np.int32)


def _lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sinc(x) sinc(x / 3), which is 0 outside [-3, 3), with one sine: sin 3a by sin a."""
    square = np.square(np.sin(x * (math.pi / _RADIUS)))
    numerator = square * (3.0 - 4.0 * square) * _RADIUS
    angle = np.square(x * math.pi)
    kernel = np.divide(numerator, angle, out=np.ones_like(x), where=angle != 0)
    kernel[(x < -_RADIUS) | (x >= _RADIUS)] = 0.0
    return kernel


@functools.cache
def _same_as_pillow() -> bool:
    """Compare once per process: another Pillow, or a broken BLAS, costs speed and no bits."""
    noise_HW = np.random.default_rng(0).integers(0, 256, (250, 333), np.uint8)
    noise_HW[:, 100:200] = 255
    for height in (70, 250):
        for width in (150, 333):
            part_HW = np.ascontiguousarray(noise_HW[:height, :width])
            narrow = _shrink_rows(part_HW, [32])
            expected = _by_pillow(Image.fromarray(part_HW), (32, 32))
            if narrow is None or not np.array_equal(_shrink_columns(narrow[0], 32), expected):
                return False
    return True

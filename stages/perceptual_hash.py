"""Perceptual hashes: 64-bit image fingerprints that survive resizing and re-encoding."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import scipy.fft
from numpy.typing import NDArray
from PIL import Image

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import REDUCED_SIDE, DecodedImage, Media
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage
from winnow.models.pixels import on_white
from winnow.stages._lanczos import lanczos_grids
from winnow.stages._media import quiet_pillow

# Shape suffixes: N images, Y and X of the reduced grey image, U and V vertical and horizontal
# frequency, C colour.

Algorithm = Literal["phash", "dhash"]

SIDE = 32
"""Side of the grey image under phash and image_detail; REDUCED_SIDE is twice that."""
DHASH_SIZE = (9, 8)
"""Width and height of the grey image under dhash."""
THUMBNAIL_SIDE = 8

Bytes = NDArray[np.uint8]
Box = tuple[float, float, float, float]


def low_frequencies(grey_NYX: Bytes) -> NDArray[np.float64]:
    """Return the 8x8 low-frequency corner of the 2-D DCT-II, unnormalised, of 32x32 grey images.

    The same transforms in the same order as imagehash.phash, so that the same last bits decide a
    tie with the median; the rows that it would throw away are not transformed.
    """
    columns_NUX = scipy.fft.dct(grey_NYX, axis=1)[:, :8]
    return scipy.fft.dct(columns_NUX, axis=2)[:, :, :8]


def perceptual_hash(dct_NUV: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return imagehash.phash: bit = coefficient above the median of the 64, raster order."""
    median_N = np.median(dct_NUV, axis=(1, 2), keepdims=True)
    return _pack(dct_NUV > median_N)


def difference_hash(grey_NYX: Bytes) -> NDArray[np.uint64]:
    """Return imagehash.dhash of 9x8 grey images: bit = brighter than its left neighbour."""
    return _pack(grey_NYX[:, :, 1:] > grey_NYX[:, :, :-1])


def image_detail(dct_NUV: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the margin, in grey levels, that decides the middle one of the 64 bits of phash."""
    median_N = np.median(dct_NUV, axis=(1, 2), keepdims=True)
    margin_N = np.median(np.abs(dct_NUV - median_N), axis=(1, 2))
    # A cosine of amplitude 1 has the coefficient SIDE**2 in scipy's unnormalised DCT.
    return (margin_N / SIDE**2).astype(np.float32)


def thumbnail(image: Image.Image, covered: Box | None = None) -> Bytes:
    """Return the mean colour of each cell of an 8x8 grid, on white, as (8, 8, 3).

    covered: the part of a JPEG decoded at reduced size that is picture; None: all.
    """
    left, upper, right, lower = covered or (0, 0, *image.size)
    mode = "RGBa" if image.has_transparency_data else "RGB"
    if mode == "RGBa" and image.mode != "RGBA":
        image = image.convert("RGBA")
    full = image if image.mode in (mode, "L") else image.convert(mode)
    # Means of whole blocks first, 32 a side or more: most of the work, and fast in Pillow.
    steps = (max(1, image.width // 32), max(1, image.height // 32))
    blocks_HWC = np.atleast_3d(np.asarray(full.reduce(steps), dtype=np.float32))
    height, width, num_colours = blocks_HWC.shape
    rows_YWC = _cell_shares(image.height, steps[1], upper, lower) @ blocks_HWC.reshape(height, -1)
    rows_YWC = rows_YWC.reshape(-1, width, num_colours)
    cells_YXC = _cell_shares(image.width, steps[0], left, right) @ rows_YWC
    if mode == "RGBa":
        cells_YXC = cells_YXC[:, :, :3] + (255 - cells_YXC[:, :, 3:])
    cells_YXC = np.broadcast_to(cells_YXC, (THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3))
    return np.rint(cells_YXC).clip(0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=4096)
def _cell_shares(length: int, step: int, start: float, stop: float) -> NDArray[np.float32]:
    """Return which share of each of 8 cells of [start, stop] lies in each block of ``step``."""
    block = np.minimum(np.arange(0, length + step, step), length)
    cell = np.linspace(start, stop, THUMBNAIL_SIDE + 1)[:, None]
    overlap = np.minimum(block[1:], cell[1:]) - np.maximum(block[:-1], cell[:-1])
    return (overlap.clip(0) * (THUMBNAIL_SIDE / (stop - start))).astype(np.float32)


def _pack(bits_NUV: NDArray[np.bool_]) -> NDArray[np.uint64]:
    packed = np.packbits(bits_NUV.reshape(-1, 64), axis=1)
    return packed.view(">u8").reshape(-1).astype(np.uint64)


class _Reduced(NamedTuple):
    """What is kept of one image while its batch is read."""

    grey: Bytes
    dhash_grey: Bytes
    thumbnail: Bytes


@register_stage("perceptual_hash", version=4)
@dataclass(frozen=True, kw_only=True, slots=True)
class PerceptualHash(Stage):
    """Fingerprint each image for near-duplicate search.

    Reads:   image: large_binary, encoded bytes; null where the download failed.
    Writes:  phash: uint64, if asked for. imagehash.phash of the upright image, bit for bit
                 (``f"{phash:016x}" == str(imagehash.phash(image))``); of the image on white where
                 it has transparency. Of a JPEG: see ``jpeg_decode``. 16-bit grey is read as its
                 upper 8 bits, where imagehash clips it at 255 (a depth map is all white then).
             dhash: uint64, if asked for. imagehash.dhash, likewise.
             thumbnail: fixed_size_binary(192), 8x8 RGB bytes in raster order: mean colour of each
                 cell, transparency on white. A second signal beside the hash.
             image_detail: float32, grey levels (0 to 255), >= 0: the median over phash's 64 DCT
                 coefficients of the distance to their median, as the amplitude of a cosine. Half
                 of the bits are decided by less than this, so near 0 the hash is noise. Measured:
                 flat 0; flat with noise of sigma 1 to 0.03, of sigma 3 to 0.08; linear gradients
                 to 0.03; one thin line or one line of text on white from 0.15; drawings on white
                 1.5 (median); 1/f noise with the contrast of a photograph 4, with a tenth of it
                 0.4. Resized by 3/4 and saved as JPEG 70, images below 0.1 change 15 to 28 of 64
                 bits, images above 0.15 change 1 to 2. Suggested cut-off: 0.15.
             perceptual_hash_error: string; null, or "missing" (null bytes) | "too_large" (over the
                 recipe's pixel cap) | "undecodable" (unknown format, damaged, truncated). Where
                 it is set, the other columns are null; elsewhere none is.
    Cost:    CPU only. A JPEG is decoded at reduced size, besides what other stages decode; anything
             else, and a JPEG of less than 128 pixels a side, shares the pass's decoded image.
    Fails:   a bad row never raises. RecipeError for unknown or repeated ``algorithms``.

    transparency: "on_white" hashes what a white page shows. "ignore" hashes the stored colours,
        as imagehash does on the file itself: then all black drawings on a transparent ground, a
        quarter of the Open Clip Art pictures, have the hash 0. The thumbnail is always on white.

    jpeg_decode: "reduced" decodes a JPEG at 1/8, 1/4 or 1/2 of its size, the least that leaves 64
        pixels a side, whatever other stages decode: 2 to 4 times as fast. Against "full", which is
        imagehash's own, phash differs in 0.2 bits (photographs) to 0.4 bits (drawings) on average,
        in no bit for 84 to 91 %, in more than 2 for 0 to 0.9 %; dhash in 0.3 to 0.4 bits, in more
        than 2 for 0.4 to 3 %; the thumbnail in 0.5 levels (JPEG 40 to 92, image_detail from 0.15).

    Formulas: imagehash 4.3 (phash, dhash).
    """

    algorithms: tuple[Algorithm, ...] = result(("phash",))
    transparency: Literal["on_white", "ignore"] = result("on_white")
    jpeg_decode: Literal["reduced", "full"] = result("reduced")

    reads = pa.schema({"image": pa.large_binary()})

    def __post_init__(self) -> None:
        known = get_args(Algorithm)
        if not self.algorithms or len(set(self.algorithms)) != len(self.algorithms):
            given = list(self.algorithms)
            msg = f"perceptual_hash: algorithms={given}: name each of {list(known)} at most once"
            raise RecipeError(msg)
        for name in self.algorithms:
            if name not in known:
                msg = f"perceptual_hash: there is no algorithm {name!r}; known: {', '.join(known)}"
                raise RecipeError(msg)

    @property
    def writes(self) -> pa.Schema:
        """The hashes asked for, thumbnail, detail, error."""
        hashes: dict[str, pa.DataType] = {name: pa.uint64() for name in self.algorithms}
        return pa.schema(
            {
                **hashes,
                "thumbnail": pa.binary(THUMBNAIL_SIDE**2 * 3),
                "image_detail": pa.float32(),
                "perceptual_hash_error": pa.string(),
            }
        )

    @property
    def decodes_full_size(self) -> bool:
        """Whether a JPEG is decoded in full."""
        return self.jpeg_decode == "full"

    def annotate(self, batch: pa.RecordBatch, state: None, media: Media) -> pa.RecordBatch:
        rows: list[dict[str, Any]] = [{} for _ in range(batch.num_rows)]
        readable: list[int] = []
        reduced: list[_Reduced] = []
        min_side = None if self.decodes_full_size else REDUCED_SIDE
        with quiet_pillow():
            for i, image in enumerate(media.images("image", min_side=min_side)):
                if isinstance(image, str):
                    rows[i]["perceptual_hash_error"] = image
                else:
                    readable.append(i)
                    reduced.append(self._reduce(image))
        if reduced:
            columns = self._hash(reduced)
            for i, *values in zip(readable, *columns.values(), strict=True):
                rows[i] = dict(zip(columns, values, strict=True))
        return pa.RecordBatch.from_pylist(rows, schema=self.writes)

    def _reduce(self, image: DecodedImage) -> _Reduced:
        """Return all that the columns need of one image, in a few kilobytes."""
        sizes = [(SIDE, SIDE), DHASH_SIZE] if "dhash" in self.algorithms else [(SIDE, SIDE)]
        seen = on_white(image.pixels) if self.transparency == "on_white" else image.pixels
        grids = lanczos_grids(seen.convert("L"), sizes, image.covered)
        return _Reduced(grids[0], grids[-1], thumbnail(image.pixels, image.covered))

    def _hash(self, reduced: Sequence[_Reduced]) -> dict[str, Sequence[Any]]:
        """Return the columns of the readable images; one DCT for all of them."""
        dct_NUV = low_frequencies(np.stack([r.grey for r in reduced]))
        columns: dict[str, Sequence[Any]] = {
            "thumbnail": [r.thumbnail.tobytes() for r in reduced],
            "image_detail": image_detail(dct_NUV).tolist(),
        }
        if "phash" in self.algorithms:
            columns["phash"] = perceptual_hash(dct_NUV).tolist()
        if "dhash" in self.algorithms:
            columns["dhash"] = difference_hash(np.stack([r.dhash_grey for r in reduced])).tolist()
        return columns

"""Decode the media of a batch once for all the stages of a pass, ahead of the reader.

A pass makes one ``MediaCache`` per chunk of rows and one ``BatchMedia`` per ``annotate`` call.
"""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import pyarrow as pa
from PIL import ExifTags, Image

from winnow.contracts.media import REDUCED_SIDE, DecodedImage, MediaCaps, MediaFailure

Decoded = DecodedImage | MediaFailure

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What may be decoded. Never the formats that run code or read other files (EPS, PDF, WMF ...)."""

HOSTILE_INPUT = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    BufferError,
    EOFError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's plug-ins have been seen to raise on bytes made to hurt."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright (EXIF 2.32, tag 0x0112)."""

_GREY_MODES = {"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"}
_MODES = _GREY_MODES | _COLOUR_MODES
"""Modes of decoded pixels; each converts to "L", "RGB" and "RGBA". LAB, which does not, is RGB."""

_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}

# Image.open fills Pillow's tables of plug-ins lazily; doing it here keeps threads out of it.
Image.init()
_READABLE = tuple(f for f in FORMATS if f in Image.OPEN)


def decode_image(data: bytes, caps: MediaCaps, min_side: int | None = None) -> Decoded:
    """Return the first frame of an encoded image, upright, or why there is none.

    "too_large":    the header says more than ``caps.max_pixels``; no pixel was decoded.
    "undecodable":  not one of FORMATS, damaged, or truncated.
    A JPEG with an appended picture (MPO, from phones) is a JPEG with one frame.

    min_side: see ``contracts.media.Media.images``. libjpeg then leaves out high frequencies and
        works on smaller blocks, but reads every bit as before, so it fails on the same bytes.
    """
    with quiet_pillow():
        try:
            return _decode(data, caps, min_side)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return "too_large"
        except HOSTILE_INPUT:
            return "undecodable"


def _decode(data: bytes, caps: MediaCaps, min_side: int | None) -> Decoded:
    image = Image.open(io.BytesIO(data), formats=_READABLE)
    if _num_pixels(image) > caps.max_pixels:
        return "too_large"
    is_tiff = image.format == "TIFF"
    # Before load(): a GIF rewinds to answer this, and Pillow turns a TIFF upright in load().
    animated = image.format != "MPO" and _is_animated(image)
    orientation = _orientation(image) if is_tiff else 1
    full_size, scale = image.size, 1
    if min_side is not None and image.format in ("JPEG", "MPO"):
        scale = _reduce(image, min_side)
    image.load()
    if _num_pixels(image) > caps.max_pixels:  # a GIF frame may be larger than its header said
        return "too_large"
    alpha = image.has_transparency_data
    # After load(): a PNG may carry its EXIF behind the pixels.
    orientation = orientation if is_tiff else _orientation(image)
    pixels: Image.Image = image.convert("RGB") if image.mode == "LAB" else image
    if pixels.mode not in _MODES:
        return "undecodable"
    if orientation != 1 and not is_tiff:
        pixels = pixels.transpose(_UPRIGHT[orientation])
    return DecodedImage(
        pixels=pixels,
        format="JPEG" if image.format == "MPO" else str(image.format),
        exif_orientation=orientation,
        animated=animated,
        alpha=alpha,
        scale=scale,
        covered=_covered(full_size, scale, orientation) if scale > 1 else None,
    )


def _reduce(image: Image.Image, min_side: int) -> int:
    """Make Pillow decode at 1/8, 1/4, 1/2 or all of the size; return 8, 4, 2 or 1."""
    width = image.width
    drafted = image.draft(None, (min_side, min_side))
    return 1 if drafted is None else round(width / drafted[1][2])


def _covered(
    size: tuple[int, int], scale: int, orientation: int
) -> tuple[float, float, float, float]:
    """Return the edges of a picture of this stored size within its upright, reduced pixels."""
    x, y = (-size[0] % scale / scale, -size[1] % scale / scale)
    width, height = size[0] / scale + x, size[1] / scale + y
    if orientation > 4:
        x, y, width, height = y, x, height, width
    left, upper = x * (orientation in (2, 3, 6, 7)), y * (orientation in (3, 4, 7, 8))
    return left, upper, left + width - x, upper + height - y


def _num_pixels(image: Image.Image) -> int:
    return image.width * image.height


def _orientation(image: Image.Image) -> int:
    """Return 1 to 8; damaged EXIF is no reason to lose the picture."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except HOSTILE_INPUT:
        return 1
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except HOSTILE_INPUT:
        return False


def _size_bytes(decoded: Decoded) -> int:
    if isinstance(decoded, str):
        return 0
    return _num_pixels(decoded.pixels) * _BYTES_PER_PIXEL.get(decoded.pixels.mode, 4)


_quiet_lock = threading.Lock()
_quiet_depth = 0


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence the warnings that Pillow gives about damaged files, and no others.

    ``warnings.catch_warnings`` restores the whole list of filters and so may undo what another
    thread did meanwhile; this adds one filter with the first user and takes it out with the last.
    """
    global _quiet_depth
    with _quiet_lock:
        _quiet_depth += 1
        if _quiet_depth == 1:
            warnings.filterwarnings("ignore", module=r"PIL\.")
            mine = warnings.filters[0]
            _quiet_filter[:] = [mine]
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_depth -= 1
            if _quiet_depth == 0:
                with contextlib.suppress(ValueError):  # somebody restored an older list
                    warnings.filters.remove(_quiet_filter[0])  # type: ignore[attr-defined]


_quiet_filter: list[object] = []


_Key = tuple[str, int, int | None]
"""Column, absolute row, min_side; None for all that was decoded at full size, or not at all."""


def _is_reducible(image: DecodedImage, min_side: int) -> bool:
    return image.format == "JPEG" and min(image.size) >= 2 * min_side


class MediaCache:
    """Decoded images of one chunk of rows, within ``budget_bytes``, and the threads that decode.

    When it is full, rows that have been read more often than the newcomer make room for it, and
    otherwise what is there stays: right both for stages that each read the whole chunk (where
    dropping the oldest would always drop what is needed next) and for stages that take turns on
    each batch. A row that was dropped is decoded again when it is asked for.

    ``threads=0`` decodes in the reader's own thread.  ``full_size``: some stage of the pass reads
    images at full size, so whoever can do with any size makes that decode and not another.
    """

    def __init__(self, budget_bytes: int, threads: int, *, full_size: bool = False) -> None:
        self.budget_bytes, self.threads, self.full_size = budget_bytes, threads, full_size
        self.num_decoded = 0
        """Images decoded so far, repeats included."""
        self._kept: dict[_Key, tuple[Decoded, int]] = {}
        self._kept_bytes = 0
        self._num_reads: Counter[_Key] = Counter()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, data: bytes, caps: MediaCaps, min_side: int | None) -> Future[Decoded]:
        """Decode in a thread."""
        self.num_decoded += 1
        if self.threads < 1:
            done: Future[Decoded] = Future()
            done.set_result(decode_image(data, caps, min_side))
            return done
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        return self._pool.submit(decode_image, data, caps, min_side)

    def get(
        self, column: str, row: int, min_side: int | None, *, any_size: bool = False
    ) -> Decoded | None:
        """Return what was kept of an absolute row and would be decoded alike, or at any size."""
        full, _ = self._kept.get((column, row, None), (None, 0))
        if min_side is None or isinstance(full, str):
            return full
        if full is not None and (any_size or not _is_reducible(full, min_side)):
            return full
        reduced, _ = self._kept.get((column, row, min_side), (None, 0))
        return reduced

    def read(self, column: str, row: int, min_side: int | None, decoded: Decoded) -> None:
        """Note that a stage reads this row now, and keep it if there is room."""
        at_full_size = isinstance(decoded, str) or decoded.scale == 1
        key = (column, row, None if at_full_size else min_side)
        self._num_reads[key] += 1
        if key in self._kept:
            return
        size = _size_bytes(decoded)
        if self._kept_bytes + size > self.budget_bytes:
            self._make_room(size, self._num_reads[key])
        if self._kept_bytes + size <= self.budget_bytes:
            self._kept[key] = (decoded, size)
            self._kept_bytes += size

    def _make_room(self, size: int, num_reads: int) -> None:
        more = [k for k in self._kept if self._num_reads[k] > num_reads]
        for key in sorted(more, key=lambda k: -self._num_reads[k]):
            if self._kept_bytes + size <= self.budget_bytes:
                return
            self._kept_bytes -= self._kept.pop(key)[1]

    def close(self) -> None:
        """Stop the threads and forget the images."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._kept.clear()
        self._kept_bytes = 0

    def __enter__(self) -> MediaCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class BatchMedia:
    """``contracts.media.Media`` of one batch.

    ``first_row`` is the absolute number of the batch's first row within the cache's chunk: two
    batches that hold the same row under the same number share its pixels. Null bytes are
    "missing" and are never cached, so a gate that nulls a row for one stage hides nothing from
    the next.

    Memory: the cache's budget, plus at most half as much again and ``threads`` images that are
    decoded ahead of the reader.
    """

    def __init__(
        self, batch: pa.RecordBatch, *, caps: MediaCaps, cache: MediaCache, first_row: int
    ) -> None:
        self._batch, self._caps, self._cache, self._first_row = batch, caps, cache, first_row
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and limit < caps.max_pixels:
            # Pillow would refuse beyond twice its own limit what the recipe allows.
            Image.MAX_IMAGE_PIXELS = caps.max_pixels

    def images(self, column: str = "image", *, min_side: int | None = None) -> Iterator[Decoded]:
        """Yield one decoded image or failure code per row, in row order."""
        return self._read(column, min_side, any_size=False)

    def facts(self, column: str = "image") -> Iterator[Decoded]:
        """Yield the same, at whatever size it was decoded already."""
        min_side = None if self._cache.full_size else REDUCED_SIDE
        return self._read(column, min_side, any_size=True)

    def _read(self, column: str, min_side: int | None, *, any_size: bool) -> Iterator[Decoded]:
        payload = self._batch.column(column)
        pending: deque[Decoded | Future[Decoded]] = deque()
        ahead, next_row, num_rows = 0, 0, len(payload)
        try:
            for row in range(num_rows):
                while next_row < num_rows and (
                    next_row == row or self._may_look_further(pending, ahead)
                ):
                    pending.append(self._start(column, payload, next_row, min_side, any_size))
                    next_row += 1
                first = pending.popleft()
                decoded = first.result() if isinstance(first, Future) else first
                ahead = sum(map(_done_bytes, pending))
                if decoded != "missing":
                    self._cache.read(column, self._first_row + row, min_side, decoded)
                yield decoded
        finally:
            for item in pending:
                if isinstance(item, Future):
                    item.cancel()

    def _may_look_further(self, pending: deque[Decoded | Future[Decoded]], ahead: int) -> bool:
        depth = 2 * self._cache.threads
        return len(pending) <= depth and ahead < self._cache.budget_bytes // 2

    def _start(
        self, column: str, payload: pa.Array, row: int, min_side: int | None, any_size: bool
    ) -> Decoded | Future[Decoded]:
        value = payload[row]
        if not value.is_valid:
            return "missing"
        kept = self._cache.get(column, self._first_row + row, min_side, any_size=any_size)
        return self._cache.submit(value.as_py(), self._caps, min_side) if kept is None else kept


def _done_bytes(item: Decoded | Future[Decoded]) -> int:
    if isinstance(item, Future):
        return _size_bytes(item.result()) if item.done() and not item.cancelled() else 0
    return 0

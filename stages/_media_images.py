"""Decode images from bytes in memory, upright, with Pillow's harmless formats only."""

from __future__ import annotations

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator

from PIL import ExifTags, Image

from winnow.contracts.media import DecodedImage, MediaCaps, MediaFailure
from winnow.models.pixels import eight_bits

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

_GREY_MODES = {"1", "L", "LA", "I", "F"}
_COLOUR_MODES = {"P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV"}
_MODES = _GREY_MODES | _COLOUR_MODES
"""Modes of decoded pixels; each converts to "L", "RGB" and "RGBA". LAB, which does not, is RGB, and
16-bit grey, which would be clipped, is its upper 8 bits."""

BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1}
"""Of Pillow's modes in memory; 4 for all others."""

_PALETTE_COLOURS = 256

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
    transparency = image.info.get("transparency")
    if isinstance(transparency, bytes) and len(transparency) > _PALETTE_COLOURS:
        del image.info["transparency"]  # as libpng: no conversion could use it
    alpha = image.has_transparency_data
    # After load(): a PNG may carry its EXIF behind the pixels.
    orientation = orientation if is_tiff else _orientation(image)
    pixels = eight_bits(image.convert("RGB") if image.mode == "LAB" else image)
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

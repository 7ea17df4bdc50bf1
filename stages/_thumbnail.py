"""A small JPEG of whatever picture some bytes hold, for people to look at."""

from __future__ import annotations

import io

from PIL import Image

from winnow.contracts.media import MediaCaps
from winnow.models.pixels import eight_bits
from winnow.stages import _media_images

SIDE = 132
MAX_PIXELS = MediaCaps().max_pixels


def thumbnail(data: bytes, side: int = SIDE, max_pixels: int = MAX_PIXELS) -> bytes | None:
    """Return a JPEG of at most ``side`` by ``side`` pixels; None where there is no picture.

    First frame, EXIF orientation applied, transparency on white, never enlarged. None for bytes
    that Pillow's white-listed formats cannot decode, that are truncated, or whose header says more
    than ``max_pixels``; never raises for the content of ``data``.
    Cost: a JPEG is decoded at the scale (1/2, 1/4, 1/8) that is still large enough.
    """
    with _media_images.quiet_pillow():
        try:
            return _thumbnail(data, side, max_pixels)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return None
        except _media_images.HOSTILE_INPUT:
            return None


def _thumbnail(data: bytes, side: int, max_pixels: int) -> bytes | None:
    image = Image.open(io.BytesIO(data), formats=_media_images._READABLE)
    if image.width * image.height > max_pixels:
        return None
    if image.format in ("JPEG", "MPO"):
        image.draft("RGB", (2 * side, 2 * side))
    orientation = 1 if image.format == "TIFF" else _media_images._orientation(image)
    image.load()
    if image.width * image.height > max_pixels:
        return None
    small = eight_bits(image)
    small = small.convert("RGBA" if small.has_transparency_data else "RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        white.alpha_composite(small)
        small = white.convert("RGB")
    if orientation != 1:
        small = small.transpose(_media_images._UPRIGHT[orientation])
    out = io.BytesIO()
    small.save(out, "JPEG", quality=76, optimize=True)
    return out.getvalue()

"""Drop images larger than a trainer wants to decode."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("max_image_pixels")
def max_image_pixels(*, pixels: int) -> Expr:
    """Keep rows with ``width * height <= pixels``.

    Reads:  width, height: int32, pixels; null = not decoded.
    Fails:  RecipeError if pixels is below 1.
    """
    require_between("max_image_pixels", "pixels", pixels, 1)
    return col("width") * col("height") <= pixels

"""Keep images whose smaller side is long enough."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("min_image_size")
def min_image_size(*, side: int) -> Expr:
    """Keep rows whose smaller side is at least ``side`` pixels.

    Reads:  width, height: int32, pixels after EXIF orientation; null = not decoded.
    Fails:  RecipeError if side is below 1.
    """
    require_between("min_image_size", "side", side, 1)
    return (col("width") >= side) & (col("height") >= side)

"""Drop flat images."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("min_image_detail")
def min_image_detail(*, detail: float) -> Expr:
    """Keep rows with ``image_detail >= detail``.

    Reads:  image_detail: float32, >= 0 (see perceptual_hash); null = not decoded.
    Fails:  RecipeError if detail is negative.
    """
    require_between("min_image_detail", "detail", detail, 0)
    return col("image_detail") >= detail

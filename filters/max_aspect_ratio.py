"""Drop banners and ribbons."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("max_aspect_ratio")
def max_aspect_ratio(*, ratio: float) -> Expr:
    """Keep rows with ``aspect_ratio <= ratio``.

    Reads:  aspect_ratio: float32, longer side / shorter side, >= 1; null = not decoded.
    Fails:  RecipeError if ratio is below 1.
    """
    require_between("max_aspect_ratio", "ratio", ratio, 1)
    return col("aspect_ratio") <= ratio

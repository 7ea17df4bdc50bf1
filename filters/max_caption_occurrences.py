"""Drop boilerplate: captions that many rows share."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("max_caption_occurrences")
def max_caption_occurrences(*, occurrences: int) -> Expr:
    """Keep rows with ``caption_occurrences <= occurrences``.

    Reads:  caption_occurrences: int64, rows of the pool with this caption; null = no caption.
    Fails:  RecipeError if occurrences is below 1.
    """
    require_between("max_caption_occurrences", "occurrences", occurrences, 1)
    return col("caption_occurrences") <= occurrences

"""Keep still images."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters.expr import Expr, col


@register_filter("not_animated")
def not_animated() -> Expr:
    """Keep rows with ``not animated``.

    Reads:  animated: bool, more than one frame; null = not decoded.
    """
    return ~col("animated")

"""Keep the first of equal source rows."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters.expr import Expr, col


@register_filter("drop_repeated_rows")
def drop_repeated_rows() -> Expr:
    """Keep rows with ``not repeated_row``.

    Reads:  repeated_row: bool, true where an equal uid came earlier in source order.
    """
    return ~col("repeated_row")

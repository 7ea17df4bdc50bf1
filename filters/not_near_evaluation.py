"""Drop rows that resemble an evaluation set."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters.expr import Expr, col


@register_filter("not_near_evaluation")
def not_near_evaluation() -> Expr:
    """Keep rows with ``not near_evaluation``.

    Reads:  near_evaluation: bool, an evaluation image looks like this one; null = not compared.
    """
    return ~col("near_evaluation")

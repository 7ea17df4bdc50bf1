"""Keep recordings that say what their caption says."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_column
from winnow.filters.expr import Expr, col


@register_filter("max_word_error_rate")
def max_word_error_rate(*, threshold: float, column: str = "word_error_rate") -> Expr:
    """Keep rows with ``word_error_rate <= threshold``, or ``character_error_rate`` by ``column``.

    Reads:  <column> (word_error_rate): float32, >= 0, above 1 where the transcript is the longer
            (see word_error); null = not measured.
    Fails:  RecipeError if threshold is negative or column is empty.
    """
    require_between("max_word_error_rate", "threshold", threshold, 0)
    require_column("max_word_error_rate", column, "word_error_rate")
    return col(column) <= threshold

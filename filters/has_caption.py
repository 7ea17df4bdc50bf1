"""Keep rows that have a caption to train on."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_column
from winnow.filters.expr import Expr, col


@register_filter("has_caption")
def has_caption(*, column: str = "chosen_caption") -> Expr:
    """Keep rows whose <column> is there: the stage ``caption_choice`` chose one.

    Reads:  <column> (chosen_caption): string; null = no caption passed.
    Null:   never; the condition is true or false for every row.
    Fails:  RecipeError if column is empty.
    """
    require_column("has_caption", column, "chosen_caption")
    return ~col(column).is_null()

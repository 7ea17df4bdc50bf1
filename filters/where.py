"""Keep rows that satisfy a condition written in the recipe."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._parse import parse_expression
from winnow.filters.expr import Expr


@register_filter("where")
def where(*, expression: str) -> Expr:
    """Keep rows for which ``expression`` is true; the grammar is in ``_parse``.

        where: {expression: "200 <= width <= 4000 and language in ('en', 'de')"}

    Reads:  the columns that the expression names; the plan checks their names and types.
    Null:   as in SQL: a comparison with null is null (the recipe's on_null decides).
    Fails:  RecipeError with the character, what is allowed and the nearest valid thing.
    """
    return parse_expression(expression)

"""Keep rows whose captions name nothing that is not in the picture."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_column
from winnow.filters.expr import Expr, col


@register_filter("no_hallucination")
def no_hallucination(*, most: int = 0, column: str = "num_unsupported_objects") -> Expr:
    """Keep rows with ``num_unsupported_objects <= most``, as the stage ``hallucination`` counts.

    It drops whole rows. To drop single captions give the stage's column to ``caption_choice``.

    Reads:  <column> (num_unsupported_objects): int32, >= 0; null = not measured.
    Fails:  RecipeError if most is negative or column is empty.
    """
    require_between("no_hallucination", "most", most, 0)
    require_column("no_hallucination", column, "num_unsupported_objects")
    return col(column) <= most

"""Keep the rows of some parts of a split."""

from __future__ import annotations

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_column
from winnow.filters.expr import Expr, col


@register_filter("split_is")
def split_is(*, parts: tuple[str, ...] = ("train",), column: str = "split") -> Expr:
    """Keep rows whose part is one of ``parts``.

    Reads:  <column> (split): string, see the stage; null = in no part, so ``on_null: keep`` would
            let in rows that resemble a given evaluation set.
    Fails:  RecipeError if there is no part, a part is empty, or column is empty.
    """
    if not parts or not all(parts):
        msg = f'split_is: parts={list(parts)}; name at least one part, such as ["train"]'
        raise RecipeError(msg)
    require_column("split_is", column, "split")
    return col(column).is_in(parts)

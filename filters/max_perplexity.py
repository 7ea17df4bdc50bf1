"""Drop documents that surprise a language model."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_column
from winnow.filters.expr import Expr, col


@register_filter("max_perplexity")
def max_perplexity(*, threshold: float, column: str = "text_perplexity") -> Expr:
    """Keep rows with ``text_perplexity <= threshold``.

    Reads:  text_perplexity: float32, >= 1 (the stage text_quality with ``language_model``; another
            column where one is named); null = nothing could be scored. What is usual depends on the
            model: look at the report's histogram before choosing.
    Fails:  RecipeError if threshold is below 1.
    """
    require_column("max_perplexity", column, "text_perplexity")
    require_between("max_perplexity", "threshold", threshold, 1)
    return col(column) <= threshold

"""Keep pairs whose caption describes the image."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_column
from winnow.filters.expr import Expr, col


@register_filter("min_clip_score")
def min_clip_score(*, threshold: float, column: str = "clip_score") -> Expr:
    """Keep rows with ``clip_score >= threshold``, or another ``column`` that holds such scores.

    Reads:  <column> (clip_score): float32, a cosine in [-1, 1]; null = not scored.
    Fails:  RecipeError if threshold is outside [-1, 1] or column is empty.
    """
    require_between("min_clip_score", "threshold", threshold, -1, 1)
    require_column("min_clip_score", column, "clip_score")
    return col(column) >= threshold

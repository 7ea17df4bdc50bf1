"""Keep pairs whose caption describes the image."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("min_clip_score")
def min_clip_score(*, threshold: float) -> Expr:
    """Keep rows with ``clip_score >= threshold``.

    Reads:  clip_score: float32, a cosine in [-1, 1]; null = not scored.
    Fails:  RecipeError if threshold is outside [-1, 1].
    """
    require_between("min_clip_score", "threshold", threshold, -1, 1)
    return col("clip_score") >= threshold

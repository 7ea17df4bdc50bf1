"""Keep pairs whose caption describes the recording."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_column
from winnow.filters.expr import Expr, col


@register_filter("min_audio_text_score")
def min_audio_text_score(*, threshold: float, column: str = "audio_text_score") -> Expr:
    """Keep rows with ``audio_text_score >= threshold``, or another ``column`` of such scores.

    Reads:  <column> (audio_text_score): float32, a cosine in [-1, 1]; null = not scored.
    Fails:  RecipeError if threshold is outside [-1, 1] or column is empty.
    """
    require_between("min_audio_text_score", "threshold", threshold, -1, 1)
    require_column("min_audio_text_score", column, "audio_text_score")
    return col(column) >= threshold

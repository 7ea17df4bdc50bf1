"""Keep recordings that are neither too short nor too long."""

from __future__ import annotations

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_some
from winnow.filters.expr import Expr, col


@register_filter("audio_duration")
def audio_duration(*, min_s: float | None = None, max_s: float | None = None) -> Expr:
    """Keep rows with ``min_s <= audio_duration_s <= max_s``.

    Reads:  audio_duration_s: float64, seconds that were decoded; null = not decoded.
    Fails:  RecipeError if no bound is given, one is negative, or min_s is above max_s.
    """
    require_some("audio_duration", min_s=min_s, max_s=max_s)
    low, high = 0.0 if min_s is None else min_s, float("inf") if max_s is None else max_s
    require_between("audio_duration", "min_s", low, 0)
    require_between("audio_duration", "max_s", high, 0)
    if low > high:
        msg = f"audio_duration: min_s={min_s} is above max_s={max_s}; swap them"
        raise RecipeError(msg)
    duration = col("audio_duration_s")
    if max_s is None:
        return duration >= low
    if min_s is None:
        return duration <= high
    return (duration >= low) & (duration <= high)

"""Keep recordings that were sampled often enough."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("min_sample_rate")
def min_sample_rate(*, hertz: int) -> Expr:
    """Keep rows with ``audio_sample_rate >= hertz``.

    A file may have been resampled from a lower rate: ``bandwidth_hz`` of audio_quality says.

    Reads:  audio_sample_rate: int32, Hz; null = not decoded.
    Fails:  RecipeError if hertz is below 1.
    """
    require_between("min_sample_rate", "hertz", hertz, 1)
    return col("audio_sample_rate") >= hertz

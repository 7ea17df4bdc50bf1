"""Drop steady tones and steady noise."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("min_audio_detail")
def min_audio_detail(*, detail: float) -> Expr:
    """Keep rows with ``audio_detail >= detail``.

    Reads:  audio_detail: float32, dB, >= 0 (see audio_fingerprint); null = not decoded, too short
            or silent.
    Fails:  RecipeError if detail is negative.
    """
    require_between("min_audio_detail", "detail", detail, 0)
    return col("audio_detail") >= detail

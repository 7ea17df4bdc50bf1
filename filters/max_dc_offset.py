"""Drop recordings that are not centred on zero."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("max_dc_offset")
def max_dc_offset(*, offset: float) -> Expr:
    """Keep rows with ``dc_offset <= offset``.

    Suggested: 0.03, against an offset of 0.05: precision 0.95 (1 in 20 utterances that were clipped
    heavily has one too), recall 1.00 (benchmarks/audio_quality.py: 660 synthesised utterances, 11
    kinds of damage, six codecs; chosen on one seed, measured on another). Undamaged voices have up
    to 0.01. Opus takes an offset away.

    Reads:  dc_offset: float32, >= 0, 1 = full scale (see audio_quality); null = not decoded.
    Fails:  RecipeError if offset is negative.
    """
    require_between("max_dc_offset", "offset", offset, 0)
    return col("dc_offset") <= offset

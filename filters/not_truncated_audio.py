"""Keep recordings that are whole."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters.expr import Expr, col


@register_filter("not_truncated_audio")
def not_truncated_audio() -> Expr:
    """Keep rows with ``not audio_truncated``.

    Reads:  audio_truncated: bool, the file ends before it says, or a part of it is damaged; null =
            not decoded.
    """
    return ~col("audio_truncated")

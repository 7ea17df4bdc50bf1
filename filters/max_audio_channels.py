"""Drop recordings with more channels than a trainer can use."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("max_audio_channels")
def max_audio_channels(*, channels: int) -> Expr:
    """Keep rows with ``audio_channels <= channels``.

    Reads:  audio_channels: int16; null = not decoded.
    Fails:  RecipeError if channels is below 1.
    """
    require_between("max_audio_channels", "channels", channels, 1)
    return col("audio_channels") <= channels

"""Drop recordings without high frequencies: telephone speech, whatever its sample rate says."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("min_bandwidth")
def min_bandwidth(*, hz: float) -> Expr:
    """Keep rows with ``bandwidth_hz >= hz``.

    Suggested: 5000, against 8 kHz recordings in files of 16 to 48 kHz: precision 1.00, recall 1.00
    (benchmarks/audio_quality.py: 660 synthesised utterances, 11 kinds of damage, six codecs; chosen
    on one seed, measured on another). Those had 4100 Hz at most, undamaged ones 6250 at least.

    Reads:  bandwidth_hz: float32, Hz (see audio_quality); null = silent or shorter than 32 ms.
    Fails:  RecipeError if hz is negative.
    """
    require_between("min_bandwidth", "hz", hz, 0)
    return col("bandwidth_hz") >= hz

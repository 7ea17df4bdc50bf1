"""Drop clipped recordings."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_some
from winnow.filters.expr import Expr, all_of, col


@register_filter("max_clipping_ratio")
def max_clipping_ratio(*, ratio: float | None = None, pile_up: float | None = None) -> Expr:
    """Keep rows with ``clipping_ratio <= ratio`` and ``peak_pile_up <= pile_up``, as given.

    Suggested: 0.001 for both, against clipping of 1 % and 5 % of the samples
    (benchmarks/audio_quality.py: 660 synthesised utterances, 11 kinds of damage, six codecs; chosen
    on one seed, measured on another). ``ratio``: precision 1.00, recall 1.00 in WAV and FLAC and 0
    in lossy codecs. ``pile_up``: precision 1.00, recall 0.99 in all codecs; for speech only, as a
    steady tone piles up too.

    Reads:  clipping_ratio, peak_pile_up: float32 in [0, 1] (see audio_quality); null = not
            measured.
    Fails:  RecipeError if nothing is given or a bound is outside [0, 1].
    """
    require_some("max_clipping_ratio", ratio=ratio, pile_up=pile_up)
    conditions = []
    for column, name, bound in (
        ("clipping_ratio", "ratio", ratio),
        ("peak_pile_up", "pile_up", pile_up),
    ):
        if bound is not None:
            require_between("max_clipping_ratio", name, bound, 0, 1)
            conditions.append(col(column) <= bound)
    return all_of(*conditions)

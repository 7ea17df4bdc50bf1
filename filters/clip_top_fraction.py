"""Keep the best-scored fraction of the pool, as DataComp does."""

from __future__ import annotations

from typing import Literal

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_column
from winnow.filters.rules import TopFraction


@register_filter("clip_top_fraction")
def clip_top_fraction(
    *,
    fraction: float,
    over: Literal["unrepeated", "survivors"] = "unrepeated",
    column: str = "clip_score",
) -> TopFraction:
    """Keep rows whose ``clip_score``, or another score ``column``, is among the best ``fraction``.

    DataComp (baselines/apply_filter.py, get_threshold): the scores of the whole pool in descending
    order, threshold at index int(n * fraction), kept is ``score >= threshold``; so int(n * f) + 1
    rows and all ties. Index n (fraction 1), which fails there, is n - 1 here.

    ``over: unrepeated`` ranks all unrepeated rows that have a score, whatever other filters say;
    ``over: survivors`` ranks what the filters before this one kept.

    Reads:  <column> (clip_score): float32; null = not scored (not ranked).
    Fails:  RecipeError if fraction is outside [0, 1] or column is empty.
    """
    require_between("clip_top_fraction", "fraction", fraction, 0, 1)
    require_column("clip_top_fraction", column, "clip_score")
    return TopFraction(column=column, fraction=fraction, over=over)

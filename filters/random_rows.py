"""Keep a random subset of exactly the asked size."""

from __future__ import annotations

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.rules import RandomRows


@register_filter("random_rows")
def random_rows(
    *, count: int | None = None, fraction: float | None = None, seed: int = 0
) -> RandomRows:
    """Keep exactly ``count`` rows of those that the filters before this one kept (all, if fewer).

    ``fraction`` instead of ``count`` keeps that share, to the nearest whole row. The rows are those
    with the least hash(seed, uid): another seed is a fresh subset, the same seed always gives the
    same rows, a larger count gives a superset, and neither shards nor workers nor the order of rows
    count. Put ``drop_repeated_rows`` before it: rows with one uid are one row each here, and as
    they have one hash they are kept or dropped together, but for those at the cut.

    It may stand after ``drop_near_duplicates``, so that the size is exact; then a duplicate may
    have been dropped for a row that is not drawn.

    Reads:  nothing but the uid.
    Null:   never, so on_null changes nothing.
    Fails:  RecipeError unless one of count (at least 1) and fraction (in [0, 1]) is given.
    """
    if (count is None) == (fraction is None):
        msg = "random_rows: give either count, such as 10000, or fraction, such as 0.1"
        raise RecipeError(msg)
    if count is not None:
        require_between("random_rows", "count", count, 1)
    if fraction is not None:
        require_between("random_rows", "fraction", fraction, 0, 1)
    return RandomRows(count=count, fraction=fraction, seed=seed)

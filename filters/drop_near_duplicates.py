"""Keep one of each group of near-duplicate images: the one that is preferred."""

from __future__ import annotations

from typing import Literal

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters.rules import PriorityCover

LARGEST = ("largest width", "largest height", "largest image_size_bytes")
"""Near-duplicates have nearly one aspect ratio, so the wider one has more pixels."""


@register_filter("drop_near_duplicates")
def drop_near_duplicates(*, prefer: tuple[str, ...] = LARGEST) -> PriorityCover:
    """Keep a row unless it neighbours a kept row that is preferred to it.

    ``prefer`` lists columns with a direction, most important first: ``largest clip_score``,
    ``smallest image_size_bytes``. Nulls come last; the smaller uid wins a tie. Every dropped row
    names the kept row it resembles (``duplicate_of`` in the ledger).

    Reads:  near_duplicates: list<fixed_size_binary(16)>, uids; null = no hash, such rows are kept.
            near_duplicate_group: binary(16), see near_duplicates; the columns of ``prefer``.
    Fails:  RecipeError if an item of prefer is not "largest COLUMN" or "smallest COLUMN", or a
            column comes twice.
    """
    order = tuple(_preference(item) for item in prefer)
    columns = [column for column, _ in order]
    for column in columns:
        if columns.count(column) > 1:
            msg = f"drop_near_duplicates: prefer names {column!r} twice; keep the first"
            raise RecipeError(msg)
    return PriorityCover(neighbors="near_duplicates", prefer=order, groups="near_duplicate_group")


def _preference(item: str) -> tuple[str, Literal["largest", "smallest"]]:
    way, _, column = item.strip().partition(" ")
    column = column.strip()
    if column and way == "largest":
        return column, "largest"
    if column and way == "smallest":
        return column, "smallest"
    name = column or way or "clip_score"
    msg = (
        f"drop_near_duplicates: prefer has {item!r}; write a direction and a column, "
        f'such as "largest {name}" or "smallest {name}"'
    )
    raise RecipeError(msg)

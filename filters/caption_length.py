"""Keep captions of a useful length."""

from __future__ import annotations

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_some
from winnow.filters.expr import Expr, all_of, col


@register_filter("caption_length")
def caption_length(
    *,
    min_words: int | None = None,
    max_words: int | None = None,
    min_characters: int | None = None,
    max_characters: int | None = None,
) -> Expr:
    """Keep rows whose caption has at least / at most so many words and characters, inclusive.

    Reads:  num_words, num_characters: int32 (see caption_stats); null = no caption.
    Fails:  RecipeError if nothing is given, a bound is negative, or a minimum exceeds its maximum.
    """
    low = {"num_words": min_words, "num_characters": min_characters}
    high = {"num_words": max_words, "num_characters": max_characters}
    require_some(
        "caption_length",
        min_words=min_words,
        max_words=max_words,
        min_characters=min_characters,
        max_characters=max_characters,
    )
    conditions = []
    for column in ("num_words", "num_characters"):
        unit = column.removeprefix("num_")
        least, most = low[column], high[column]
        if least is not None:
            require_between("caption_length", f"min_{unit}", least, 0)
            conditions.append(col(column) >= least)
        if most is not None:
            require_between("caption_length", f"max_{unit}", most, 0)
            conditions.append(col(column) <= most)
        if least is not None and most is not None and least > most:
            msg = f"caption_length: min_{unit}={least} is above max_{unit}={most}; swap them"
            raise RecipeError(msg)
    return all_of(*conditions)

"""Drop captions that are symbols, digits or one thing over and over."""

from __future__ import annotations

from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_some
from winnow.filters.expr import Expr, all_of, col


@register_filter("caption_quality")
def caption_quality(
    *,
    min_alphanumeric_ratio: float | None = None,
    max_word_repetition_ratio: float | None = None,
    max_character_repetition_ratio: float | None = None,
) -> Expr:
    """Keep rows within the given bounds, inclusive.

    Reads:  alphanumeric_ratio, word_repetition_ratio, character_repetition_ratio: float32 in
            [0, 1] (see caption_stats for the formulas); null = no caption.
    Fails:  RecipeError if nothing is given or a bound is outside [0, 1].
    """
    bounds = {
        "min_alphanumeric_ratio": min_alphanumeric_ratio,
        "max_word_repetition_ratio": max_word_repetition_ratio,
        "max_character_repetition_ratio": max_character_repetition_ratio,
    }
    require_some("caption_quality", **bounds)
    conditions = []
    for name, bound in bounds.items():
        if bound is None:
            continue
        require_between("caption_quality", name, bound, 0, 1)
        column = col(name[len("min_") :])
        conditions.append(column >= bound if name.startswith("min_") else column <= bound)
    return all_of(*conditions)

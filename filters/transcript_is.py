"""Keep recordings whose transcript is probably what is said in them."""

from __future__ import annotations

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between, require_column, require_some
from winnow.filters.expr import Expr, all_of, col


@register_filter("transcript_is")
def transcript_is(
    *,
    max_no_speech_probability: float | None = None,
    min_log_probability: float | None = None,
    max_compression_ratio: float | None = None,
    languages: tuple[str, ...] = (),
    column: str = "transcript",
) -> Expr:
    """Keep rows within all the given bounds, inclusive.

    Whisper's reference takes 0.6, -1.0 and 2.4 for its three bounds. Where nobody speaks Whisper
    writes a short text that it holds for improbable, or one text over and over that it holds for
    probable: one bound alone does not find both. Quote the codes of languages in YAML.

    Reads:  transcript_no_speech_probability: float32 in [0, 1].
            transcript_log_probability: float32, <= 0, mean per token.
            transcript_compression_ratio: float32, >= 0.
            transcript_language: string, Whisper's codes.
            Only what is asked for; <column> (transcript) is the first part of each name. Null = no
            transcript (see transcript).
    Fails:  RecipeError if nothing is given, a bound can never be right, or column is empty.
    """
    name = "transcript_is"
    require_column(name, column, "transcript")
    bounds = {
        "max_no_speech_probability": max_no_speech_probability,
        "min_log_probability": min_log_probability,
        "max_compression_ratio": max_compression_ratio,
    }
    require_some(name, **bounds, languages=languages or None)
    conditions = []
    if max_no_speech_probability is not None:
        require_between(name, "max_no_speech_probability", max_no_speech_probability, 0, 1)
        conditions.append(col(f"{column}_no_speech_probability") <= max_no_speech_probability)
    if min_log_probability is not None:
        if not min_log_probability <= 0:
            msg = f"{name}: min_log_probability={min_log_probability}; use 0 or less, such as -1.0"
            raise RecipeError(msg)
        conditions.append(col(f"{column}_log_probability") >= min_log_probability)
    if max_compression_ratio is not None:
        require_between(name, "max_compression_ratio", max_compression_ratio, 0)
        conditions.append(col(f"{column}_compression_ratio") <= max_compression_ratio)
    if languages:
        conditions.append(col(f"{column}_language").is_in(languages))
    return all_of(*conditions)

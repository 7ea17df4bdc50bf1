"""Keep captions in the wanted languages."""

from __future__ import annotations

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, col


@register_filter("language_is")
def language_is(*, languages: tuple[str, ...], min_confidence: float = 0.0) -> Expr:
    """Keep rows whose ``language`` is one of ``languages``, with enough confidence.

    Quote the codes in YAML: a bare ``no`` is false there.

    Reads:  language: string, lid.176's code or "und"; null = no text.
            language_confidence: float32 in [0, 1], only if min_confidence is above 0.
    Fails:  RecipeError if there is no language, a code is not in small letters, or
            min_confidence is outside [0, 1].
    """
    require_between("language_is", "min_confidence", min_confidence, 0, 1)
    if not languages:
        msg = 'language_is: languages is empty; write for example languages: ["en"]'
        raise RecipeError(msg)
    for code in languages:
        if not code.isascii() or not code.isalpha() or code != code.lower() or len(code) > 3:
            near = code.strip().lower().replace("_", "-").split("-")[0]
            msg = (
                f'language_is: {code!r} is no code of lid.176 such as "en"; did you mean {near!r}?'
            )
            raise RecipeError(msg)
    spoken = col("language").is_in(languages)
    if min_confidence == 0:
        return spoken
    return spoken & (col("language_confidence") >= min_confidence)

"""Drop documents that break the published rules for web text, at their thresholds or others."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal

from winnow.contracts.errors import RecipeError
from winnow.contracts.registry import register_filter
from winnow.filters._bounds import require_between
from winnow.filters.expr import Expr, all_of, col

RuleSet = Literal["gopher", "gopher_repetition", "c4"]

PUBLISHED: dict[RuleSet, dict[str, float]] = {
    # Rae et al. 2021, appendix A.1.1.
    "gopher": {
        "min_num_text_words": 50,
        "max_num_text_words": 100_000,
        "min_mean_word_length": 3,
        "max_mean_word_length": 10,
        "max_symbol_word_ratio": 0.1,
        "max_bullet_line_ratio": 0.9,
        "max_ellipsis_line_ratio": 0.3,
        "min_alphabetic_word_ratio": 0.8,
        "min_num_stop_words": 2,
    },
    # The same, table A1.
    "gopher_repetition": {
        "max_duplicate_line_ratio": 0.3,
        "max_duplicate_paragraph_ratio": 0.3,
        "max_duplicate_line_character_ratio": 0.2,
        "max_duplicate_paragraph_character_ratio": 0.2,
        "max_top_2gram_ratio": 0.2,
        "max_top_3gram_ratio": 0.18,
        "max_top_4gram_ratio": 0.16,
        "max_duplicate_5gram_ratio": 0.15,
        "max_duplicate_6gram_ratio": 0.14,
        "max_duplicate_7gram_ratio": 0.13,
        "max_duplicate_8gram_ratio": 0.12,
        "max_duplicate_9gram_ratio": 0.11,
        "max_duplicate_10gram_ratio": 0.1,
    },
    # Raffel et al. 2020, section 2.2: the rules for pages.
    "c4": {"min_num_clean_sentences": 3},
}
_C4_FLAGS = ("has_curly_bracket", "has_lorem_ipsum")
_OTHERS = ("terminal_line_ratio", "clean_line_ratio", "num_javascript_lines", "num_policy_lines")
_COLUMNS = (*dict.fromkeys(b[4:] for rules in PUBLISHED.values() for b in rules), *_OTHERS)


@register_filter("text_rules")
def text_rules(
    *,
    rules: tuple[RuleSet, ...] = ("gopher", "gopher_repetition", "c4"),
    bounds: Mapping[str, float] | None = None,
) -> Expr:
    """Keep rows that satisfy every rule of the named sets and every bound, inclusive.

    rules: "gopher" (Rae et al. 2021, A.1.1): 50 to 100,000 words, 3 to 10 characters a word, at
    most 0.1 symbols a word, 90 % of lines with a bullet and 30 % with an ellipsis, at least 80 % of
    words with a letter and two stop words (English).  "gopher_repetition" (table A1): at most the
    published shares of repeated lines, paragraphs and runs of words.  "c4" (Raffel et al. 2020): at
    least 3 sentences in lines that C4 keeps, no curly bracket, no lorem ipsum (its rules for lines
    cut lines out; here they are bounds such as min_clean_line_ratio).
    bounds: "min_" or "max_" and a column -> value: other thresholds than the published ones, and
    more (``{max_num_text_words: 20000, min_terminal_line_ratio: 0.5}``).

    Reads:  columns of the stage text_quality, those of the rules and bounds: num_text_words,
            mean_word_length, symbol_word_ratio, bullet_line_ratio, ellipsis_line_ratio,
            alphabetic_word_ratio, num_stop_words, duplicate_line_ratio, duplicate_paragraph_ratio,
            duplicate_line_character_ratio, duplicate_paragraph_character_ratio, top_2gram_ratio,
            top_3gram_ratio, top_4gram_ratio, duplicate_5gram_ratio, duplicate_6gram_ratio,
            duplicate_7gram_ratio, duplicate_8gram_ratio, duplicate_9gram_ratio,
            duplicate_10gram_ratio, num_clean_sentences, has_curly_bracket, has_lorem_ipsum,
            terminal_line_ratio, clean_line_ratio, num_javascript_lines, num_policy_lines;
            null = no text.
    Fails:  RecipeError if nothing is asked, or a bound is unknown, negative or, for a share,
            above 1.
    """
    chosen: dict[str, float] = {}
    for rule_set in rules:
        chosen |= PUBLISHED[rule_set]
    for name, value in (bounds or {}).items():
        _check(name, value)
        chosen[name] = value
    if not chosen:
        msg = "text_rules: nothing is asked; name rules, such as gopher, or bounds"
        raise RecipeError(msg)
    conditions = [_condition(name, value) for name, value in chosen.items()]
    if "c4" in rules:
        conditions += [~col(flag) for flag in _C4_FLAGS]
    return all_of(*conditions)


def _condition(name: str, value: float) -> Expr:
    column = col(name[len("min_") :])
    return column >= value if name.startswith("min_") else column <= value


def _check(name: str, value: float) -> None:
    column = name[len("min_") :]
    if not name.startswith(("min_", "max_")) or column not in _COLUMNS:
        known = [f"{side}_{known}" for known in _COLUMNS for side in ("min", "max")]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        msg = (
            f"text_rules: bounds: {name!r} is not min_ or max_ and a number of the stage "
            f"text_quality{hint}"
        )
        raise RecipeError(msg)
    share = column.endswith("_ratio") and column != "symbol_word_ratio"
    require_between("text_rules", f"bounds: {name}", value, 0, 1 if share else float("inf"))

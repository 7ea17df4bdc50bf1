"""Counts and ratios of a caption: how long, how much of it is language, how often it repeats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.media import Media
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_stage
from winnow.contracts.stage import Stage
from winnow.stages._text_shapes import is_email, is_file_name, is_url
from winnow.stages._words import split_words as split_words

MAX_CHARACTERS = 10_000
"""Ratios look at the beginning of a longer caption; counts are of all of it."""

_BLANK = " \t\r\n\v\f\0"


def alphanumeric_ratio(text: str) -> float:
    """Return the share of characters that are letters or digits (``str.isalnum``); 0 if empty.

    As Data-Juicer's alphanumeric_filter. Spaces and combining marks count as characters only, so
    that ordinary English has 0.8 and Hindi 0.5.
    """
    return sum(map(str.isalnum, text)) / len(text) if text else 0.0


def repeated_share(items: Sequence[Hashable]) -> float:
    """Return the share of items that occur more than once; 0 if there are none.

    Over word n-grams this is Data-Juicer's word_repetition_filter.
    """
    if len(set(items)) == len(items):
        return 0.0
    return sum(count for count in Counter(items).values() if count > 1) / len(items)


def word_repetition_ratio(words: Sequence[str], n: int) -> float:
    """Return the share of the n-grams of lowered words that occur more than once."""
    if len(words) <= n:
        return 0.0
    lowered = [word.lower() for word in words]
    return repeated_share(list(zip(*(lowered[i:] for i in range(n)), strict=False)))


def character_repetition_ratio(text: str, n: int) -> float:
    """Return the share of the most frequent character n-grams among all n-grams.

    Of D distinct n-grams the most frequent are the min(int(sqrt(D)), those occurring more than
    once) first ones by count. Source: ROOTS (Laurencon et al. 2022, character repetition), as in
    Data-Juicer's character_repetition_filter.
    """
    grams = [text[i : i + n] for i in range(len(text) - n + 1)]
    distinct = len(set(grams))
    if distinct == len(grams):
        return 0.0
    counts = sorted((c for c in Counter(grams).values() if c > 1), reverse=True)
    return sum(counts[: math.isqrt(distinct)]) / len(grams)


def caption_shape(text: str) -> str:
    """Return what the whole caption is: the first that fits of empty, url, email, file_name,
    digits (digits and no letter), text."""
    text = text.strip(_BLANK)
    if not text:
        return "empty"
    if is_url(text):
        return "url"
    if is_email(text):
        return "email"
    if is_file_name(text):
        return "file_name"
    if not text.isascii() or not text.replace(" ", "").isalpha():
        head = text[:MAX_CHARACTERS]
        if not any(map(str.isalpha, head)) and any(map(str.isdigit, head)):
            return "digits"
    return "text"


@register_stage("caption_stats", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionStats(Stage):
    """Measure each caption.

    Reads:   text: string; null = no caption.
    Writes:  num_words: int32, words by spaces, and each Han or kana character (see
             winnow.stages._words).
             num_characters: int32, Unicode code points.
             alphanumeric_ratio: float32 in [0, 1], letters and digits among all characters.
             word_repetition_ratio: float32 in [0, 1], share of the runs of ``word_ngram`` words
             that occur more than once; 0 where the caption is too short to have two of them.
             character_repetition_ratio: float32 in [0, 1], share of the most frequent runs of
             ``character_ngram`` characters (ROOTS); 0 likewise.
             caption_shape: string, "text" | "url" | "email" | "file_name" | "empty" | "digits";
             "empty" is a caption of white space. Ratios and shape look at the first 10,000
             characters.
             caption_stats_error: string; null, or "missing" (text is null: all else is null too).
    Cost:    CPU only, about 15 microseconds a caption of ten words.
    Fails:   a row never raises. RecipeError if word_ngram is below 1 or character_ngram below 2.
    """

    word_ngram: int = result(2)
    character_ngram: int = result(10)

    def __post_init__(self) -> None:
        for name, value, least in (
            ("word_ngram", self.word_ngram, 1),
            ("character_ngram", self.character_ngram, 2),
        ):
            if value < least:
                msg = f"caption_stats: {name}={value} measures nothing; use at least {least}"
                raise RecipeError(msg)

    @property
    def reads(self) -> pa.Schema:
        """The caption."""
        return pa.schema({"text": pa.string()})

    @property
    def writes(self) -> pa.Schema:
        """Counts, ratios, shape, error."""
        return pa.schema(
            {
                "num_words": pa.int32(),
                "num_characters": pa.int32(),
                "alphanumeric_ratio": pa.float32(),
                "word_repetition_ratio": pa.float32(),
                "character_repetition_ratio": pa.float32(),
                "caption_shape": pa.string(),
                "caption_stats_error": pa.string(),
            }
        )

    def annotate(self, batch: pa.RecordBatch, state: None, media: Media) -> pa.RecordBatch:
        """Return the measures of each caption."""
        missing = (None,) * 6 + ("missing",)
        rows = [
            missing if text is None else self._measure(text)
            for text in batch.column("text").to_pylist()
        ]
        columns = zip(*rows, strict=True) if rows else [()] * len(self.writes)
        return pa.RecordBatch.from_arrays(
            [pa.array(values, f.type) for values, f in zip(columns, self.writes, strict=True)],
            schema=self.writes,
        )

    def _measure(self, text: str) -> tuple[Any, ...]:
        head = text[:MAX_CHARACTERS]
        words = split_words(text)
        first = words if len(head) == len(text) else split_words(head)
        return (
            len(words),
            len(text),
            alphanumeric_ratio(head),
            word_repetition_ratio(first, self.word_ngram),
            character_repetition_ratio(head, self.character_ngram),
            caption_shape(text),
            None,
        )

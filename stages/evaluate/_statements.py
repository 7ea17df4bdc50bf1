"""Statements of simple English descriptions: "two red cars", "the cat is above a dog"."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from winnow.stages._objects import Mention, Vocabulary, Word, words_of
from winnow.stages._words import NUMBER_WORDS

COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white", "brown",
    "gray", "grey",
)  # fmt: skip
_COUNTS = {word: number for number, word in enumerate(NUMBER_WORDS)} | {"a": 1, "an": 1, "no": 0}
_DETERMINERS = {"the", "this", "that", "these", "those", "its", "another"}
_SIZES = {"small", "large", "big", "little", "tiny", "huge"}
_PREDICATES = {
    "to the left of": "left of",
    "to the right of": "right of",
    "left of": "left of",
    "right of": "right of",
    "above": "above",
    "below": "below",
    "on top of": "on",
}
_MAX_DIGITS = 9
"""Of a number that counts things; Python refuses to read one of thousands."""
_BETWEEN = re.compile(rf"(?:is|are|stands|sits)? ?({'|'.join(_PREDICATES)})")


@dataclass(frozen=True, slots=True)
class Relation:
    """``subject predicate object``, names of things and a predicate as "left of"."""

    subject: str
    predicate: str
    object: str


@dataclass(frozen=True, slots=True)
class Statement:
    """A named thing and what is said of it. count: None where no number or article stands before
    it; color likewise; relation: to the thing named next, None where none is stated."""

    name: str
    count: int | None
    color: str | None
    relation: Relation | None


@dataclass(frozen=True, slots=True)
class _Phrase:
    mention: Mention
    first_word: int
    count: int | None
    color: str | None


def statements(text: str, vocabulary: Vocabulary, colors: Collection[str]) -> list[Statement]:
    """Return a statement per thing that the text names, in its order.

    A thing's phrase is "[number, article or determiner] [size] [color] name", sizes and colours in
    any order; "is not" and the like are not understood. A relation is stated where nothing stands
    between two phrases but one of _PREDICATES, with or without "is" or "are", in one sentence.
    "No cats" states that there are none: it is no mention, and left out.
    """
    words = words_of(text)
    phrases = [_phrase(m, words, colors) for m in vocabulary.mentions(text)]
    found = []
    for place, phrase in enumerate(phrases):
        following = phrases[place + 1] if place + 1 < len(phrases) else None
        relation = None
        if following and following.count != 0:
            relation = _relation(text, words, phrase, following)
        if phrase.count != 0:
            found.append(Statement(phrase.mention.name, phrase.count, phrase.color, relation))
    return found


def _phrase(mention: Mention, words: list[Word], colors: Collection[str]) -> _Phrase:
    color, count, first = None, None, mention.first_word
    while first > 0:
        word = words[first - 1].text
        if word in _COUNTS or (word.isdecimal() and len(word) <= _MAX_DIGITS):
            count = _COUNTS[word] if word in _COUNTS else int(word)
            first -= 1
            break
        if word in _DETERMINERS:
            first -= 1
            break
        if word not in _SIZES and (word not in colors or color is not None):
            break
        color = word if word in colors else color
        first -= 1
    return _Phrase(mention, first, count, color)


def _relation(text: str, words: list[Word], one: _Phrase, two: _Phrase) -> Relation | None:
    start, end = one.mention.last_word + 1, two.first_word
    between = words[start:end]
    gap = text[one.mention.end : words[end].start]
    match = _BETWEEN.fullmatch(" ".join(word.text for word in between))
    if match is None or re.search(r"[.!?;,:]", gap):
        return None
    return Relation(one.mention.name, _PREDICATES[match[1]], two.mention.name)

"""Statements of simple English descriptions: "two red cars", "the cat is above a dog"."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from winnow.stages._objects import COLORS as COLORS
from winnow.stages._objects import SIZES, Mention, Vocabulary, Word, follows, number_of, words_of

_ARTICLES = {"a": 1, "an": 1}
_DETERMINERS = {"the", "this", "that", "these", "those", "its", "another"}
_PREDICATES = {
    "to the left of": "left of",
    "to the right of": "right of",
    "left of": "left of",
    "right of": "right of",
    "above": "above",
    "below": "below",
    "on top of": "on",
}
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
    """Return a statement per thing that the text says is there (``Vocabulary.mentions``), in order.

    A thing's phrase is "[number, article or determiner] [size] [color] name", sizes and colours in
    any order, in one sentence. A relation is stated where nothing stands between two phrases but
    one of _PREDICATES, with or without "is" or "are", in one sentence; "is not above" states none.
    """
    words = words_of(text)
    phrases = [_phrase(text, words, m, colors) for m in vocabulary.mentions(text, colors)]
    found = []
    for place, phrase in enumerate(phrases):
        following = phrases[place + 1] if place + 1 < len(phrases) else None
        relation = _relation(text, words, phrase, following) if following else None
        found.append(Statement(phrase.mention.name, phrase.count, phrase.color, relation))
    return found


def _phrase(text: str, words: list[Word], mention: Mention, colors: Collection[str]) -> _Phrase:
    color, count, first = None, None, mention.first_word
    while follows(text, words, first, comma=True):
        word = words[first - 1].text
        number = _ARTICLES.get(word, number_of(text, words[first - 1]))
        if number is not None or word in _DETERMINERS:
            if follows(text, words, first):
                count, first = number, first - 1
            break
        if word not in SIZES and (word not in colors or color is not None):
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

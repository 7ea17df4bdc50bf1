"""Objects that a text says are there: names, plurals and synonyms, longest first; no "no cats"."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from winnow.contracts.errors import SetupError
from winnow.contracts.paths import user_path
from winnow.stages._words import NUMBER_WORDS
from winnow.stages.evaluate._rows import column_values

_WORD = re.compile(r"[^\W_]+(?:['\u2019-]+[^\W_]+)*")
_POSSESSIVE = re.compile(r"['\u2019]s$")
_IRREGULAR = {
    "cactus": "cacti",
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "tooth": "teeth",
}
COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "black", "white", "brown",
    "gray", "grey",
)  # fmt: skip
SIZES = frozenset({"small", "large", "big", "little", "tiny", "huge"})
_BETWEEN_NO_AND_NAME = SIZES | {"other", "single", "visible"}
_NOT = {"cannot", "not"}
_ANY = {"a", "an", "any"}
_OWN = {"her", "his", "its", "the", "their"}
_WITHOUT = {"neither", "nor", "without"}
_SHOWS = {"contain", "have", "include", "see", "show"}
_NUMBERS = {word: number for number, word in enumerate(NUMBER_WORDS)}
_MAX_DIGITS = 9
"""Of a number that counts things; Python refuses to read one of thousands."""
_MAX_LISTED = 8
"""Things of one list, "no cats, dogs or birds"; more would take a hostile text's length squared."""
_STOP = re.compile(r"[.!?;:()\u2013\u2014]")
_AN = ("a", "e", "i", "o", "u", "hour")
_NOT_AN = ("eu", "one", "uku", "uni", "use")


@dataclass(frozen=True, slots=True)
class Word:
    """A word in lower case, without a possessive's end; start, end: its characters in the text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Mention:
    """An object named in a text: characters [start, end), words [first_word, last_word]."""

    name: str
    start: int
    end: int
    first_word: int
    last_word: int


def words_of(text: str) -> list[Word]:
    """Return the words: runs of letters and digits, hyphens and apostrophes inside included."""
    return [
        Word(_POSSESSIVE.sub("", found[0].lower()), found.start(), found.end())
        for found in _WORD.finditer(text)
    ]


def number_of(text: str, word: Word) -> int | None:
    """Return the number that a word stands for: digits, or "zero" to "twenty".

    The "000" of "1,000", the "0" of "1.0" and "007" are none.
    """
    digits = word.text
    if digits.isdecimal() and len(digits) <= _MAX_DIGITS:
        before = text[max(0, word.start - 2) : word.start]
        is_part = len(before) == 2 and before[0].isdecimal() and not before[1].isspace()
        is_label = len(digits) > 1 and int(digits[0]) == 0
        return None if is_part or is_label else int(digits)
    return _NUMBERS.get(word.text)


def follows(text: str, words: Sequence[Word], place: int, *, comma: bool = False) -> bool:
    """Return whether a word stands before ``words[place]`` with no punctuation between them.

    comma: one may be between them.
    """
    if place < 1:
        return False
    gap = text[words[place - 1].end : words[place].start]
    return not _STOP.search(gap) and (comma or "," not in gap)


def with_article(name: str) -> str:
    """Return "a cat", "an apple"."""
    low = name.lower()
    return f"{'an' if low.startswith(_AN) and not low.startswith(_NOT_AN) else 'a'} {name}"


class Vocabulary:
    """The names of objects, and the words by which a text may call them.

    A name is matched in any case, and with its last word in the plural; in "slice of pizza" the
    first word may be instead. synonyms: word or words -> the name that they stand for; they have
    plurals too. Where two names share a form, the one that is written so has it, else the first by
    alphabet.
    """

    def __init__(self, names: Iterable[str], synonyms: Mapping[str, str] | None = None) -> None:
        called = {name: name for name in sorted({*names, *(synonyms or {}).values()})}
        called |= dict(sorted((synonyms or {}).items()))
        forms: dict[tuple[str, ...], str] = {}
        for text, name in called.items():
            forms.setdefault(tuple(word.text for word in words_of(text)), name)
        for singular, name in list(forms.items()):
            for plural in _plural_forms(singular):
                forms.setdefault(plural, name)
        forms.pop((), None)
        self.names: tuple[str, ...] = tuple(sorted(set(forms.values())))
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for form in sorted(forms, key=lambda f: (-len(f), f)):
            self._by_first.setdefault(form[0], []).append((form, forms[form]))

    def mentions(self, text: str, colors: Collection[str] = COLORS) -> list[Mention]:
        """Return the objects that a text says are there, in its order; no word counts twice, and
        "hot dog" is no dog where both are names.

        What it denies is left out: "no X", "zero X", "without (a, any, the, its) X", "neither X",
        "nor X", "not a X", "isn't any X", "does not show a X", with or without ``colors``, sizes,
        "other", "single" or "visible" before X; and what goes on with "or": "no X or Y", "no X, Y
        or Z" (where X or Y may be one word that is no name). "No X and Y" denies X alone. Denials
        in other words are not understood.
        """
        words = words_of(text)
        found = self._named(words)
        denied = _denied(text, words, found, {*_BETWEEN_NO_AND_NAME, *colors})
        return [mention for mention in found if mention not in denied]

    def _named(self, words: Sequence[Word]) -> list[Mention]:
        found: list[Mention] = []
        place = 0
        while place < len(words):
            for form, name in self._by_first.get(words[place].text, ()):
                here = words[place : place + len(form)]
                if tuple(word.text for word in here) == form:
                    last = place + len(form) - 1
                    found.append(Mention(name, here[0].start, here[-1].end, place, last))
                    place = last
                    break
            place += 1
        return found


def _denied(
    text: str, words: Sequence[Word], found: Sequence[Mention], adjectives: Collection[str]
) -> set[Mention]:
    """Return the mentions of things that the text says are not there; see ``mentions``."""
    by_end = {mention.last_word: mention for mention in found}
    denied: set[Mention] = set()
    for last in found:
        listed, place, has_or = [last], last.first_word, False
        for _ in range(_MAX_LISTED):
            place = _back(text, words, place, adjectives, comma=True)
            if _is_denied(text, words, place):
                denied.update(listed)
                break
            start = _back(text, words, place, _ANY)
            if follows(text, words, start) and words[start - 1].text == "or":
                has_or, start = True, start - 1
            elif not has_or or start < place:  # "no cat, a dog or a bird" has two of them
                break
            if not follows(text, words, start, comma=True):
                break
            before = by_end.get(start - 1)
            listed += [before] if before else []
            place = before.first_word if before else start - 1
    return denied


def _is_denied(text: str, words: Sequence[Word], place: int) -> bool:
    """Return whether the words right before ``place`` deny what begins there."""

    def before(place: int) -> str:
        return words[place - 1].text if follows(text, words, place) else ""

    if before(place) == "no" or (before(place) and number_of(text, words[place - 1]) == 0):
        return True
    if before(_back(text, words, place, _ANY | _OWN)) in _WITHOUT:
        return True
    start = _back(text, words, place, _ANY)
    negation = before(_back(text, words, start, _SHOWS))
    return start < place and (negation in _NOT or negation.endswith(("n't", "n\u2019t")))


def _back(
    text: str, words: Sequence[Word], place: int, over: Collection[str], *, comma: bool = False
) -> int:
    """Return where a phrase begins that goes on from ``place`` to the left over these words."""
    while follows(text, words, place, comma=comma) and words[place - 1].text in over:
        place -= 1
    return place


def _plural_forms(form: Sequence[str]) -> Iterable[tuple[str, ...]]:
    heads = {len(form) - 1} if form else set()
    if "of" in form[1:]:
        heads.add(form.index("of") - 1)
    for head in heads:
        for plural in _plurals(form[head]):
            yield (*form[:head], plural, *form[head + 1 :])


def _plurals(word: str) -> list[str]:
    """Every plural that English spelling would allow; that some are no words does no harm."""
    found = [f"{word}s", f"{word}es"]
    if word.endswith("y"):
        found.append(f"{word[:-1]}ies")
    if word.endswith("f"):
        found.append(f"{word[:-1]}ves")
    if word.endswith("fe"):
        found.append(f"{word[:-2]}ves")
    if word.endswith("man"):
        found.append(f"{word[:-2]}en")
    if word in _IRREGULAR:
        found.append(_IRREGULAR[word])
    return found


def read_synonyms(who: str, path: str | None) -> dict[str, str]:
    """Return the synonyms of a JSON file {"puppy": "dog", ...}; {} for no file.

    Fails: SetupError where it cannot be read, or holds anything else.
    """
    if path is None:
        return {}
    try:
        found = json.loads(user_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{who}: synonyms {path} cannot be read: {error}"
        raise SetupError(msg) from error
    if not isinstance(found, dict) or not all(isinstance(v, str) and v for v in found.values()):
        msg = f'{who}: synonyms {path} must map texts to names, such as {{"puppy": "dog"}}'
        raise SetupError(msg)
    return found


def object_lists(who: str, table: pa.Table, column: str) -> list[list[str] | None]:
    """Return the object names of each row, repeats included; None where the row has no annotation.

    Fails: as ``column_values``; SetupError where the column does not hold lists of texts.
    """
    values = column_values(who, table, column)
    kind = table.schema.field(column).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inner = kind.value_type if is_list else None
    if inner is None or not any(
        check(inner) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    ):
        msg = f"{who}: column {column!r} holds {kind}; use one with a list of names per row"
        raise SetupError(msg)
    return [
        None if value is None else [str(name) for name in value if name]  # type: ignore[attr-defined]
        for value in values
    ]

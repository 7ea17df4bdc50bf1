"""Which language a short text in Latin letters is in: word frequencies beside lid.176's opinion.

English against the rest is a logistic model of fourteen features; among the rest a softmax of
log p(lid.176) and the mean word frequency. Both were fitted by ``benchmarks/language.py --fit``.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from winnow.stages._language_scripts import NOT_LATIN

# lid.176's label -> wordfreq's list; only languages in Latin letters, where words are needed.
WORD_LISTS = {
    "ca": "ca", "cs": "cs", "da": "da", "de": "de", "es": "es", "fi": "fi", "tl": "fil",
    "fr": "fr", "hu": "hu", "id": "id", "is": "is", "it": "it", "lt": "lt", "lv": "lv",
    "ms": "ms", "no": "nb", "nl": "nl", "pl": "pl", "pt": "pt", "ro": "ro", "sh": "sh",
    "sk": "sk", "sl": "sl", "sv": "sv", "tr": "tr", "vi": "vi",
}  # fmt: skip
RELATED = {"hr": "sh", "bs": "sh", "sr": "sh", "nn": "no"}
"""Languages judged by the word list of a near relative."""
MAX_WORDS = 64
MIN_ZIPF_ENGLISH = 1.5
MIN_ZIPF_OTHER = 3.5
UNKNOWN_ENGLISH = 1.0
UNKNOWN_OTHER = 1.5
STEPS = 25
"""Zipf values (log10 of occurrences per 1e9 words, 0 to 8) are stored as bytes of 1/25."""

_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")
_NOT_ASCII_LETTER = re.compile(r"[^\W\d_a-z]")


class Words(NamedTuple):
    """What the word lists say.

    entries: word -> bytes: English zipf, greatest zipf elsewhere, then (language, zipf) pairs.
    languages: lid.176's labels, by the index used in the pairs.
    """

    entries: dict[str, bytes]
    languages: tuple[str, ...]


def load_words() -> Words:
    """Read wordfreq's lists: about 1 s and 100 MB."""
    import wordfreq

    large, small = wordfreq.available_languages("large"), wordfreq.available_languages("small")
    english = dict(_listed(wordfreq.read_cBpack(large["en"]), MIN_ZIPF_ENGLISH))
    others: dict[str, list[int]] = {}
    for number, name in enumerate(WORD_LISTS.values()):
        for word, zipf in _listed(wordfreq.read_cBpack(small[name]), MIN_ZIPF_OTHER):
            others.setdefault(word, []).extend((number, zipf))
    shared: dict[bytes, bytes] = {}
    entries: dict[str, bytes] = {}
    for word in (*english, *(w for w in others if w not in english)):
        pairs = others.get(word, [])
        entry = bytes([english.get(word, 0), max(pairs[1::2], default=0), *pairs])
        entries[word] = shared.setdefault(entry, entry)
    return Words(entries, tuple(WORD_LISTS))


def _listed(buckets: Sequence[Sequence[str]], least: float) -> Iterable[tuple[str, int]]:
    """Yield (word, stored zipf); bucket i of a cBpack list has zipf 9 - i / 100."""
    for centibels, words in enumerate(buckets):
        zipf = 9 - centibels / 100
        if zipf < least:
            return
        for word in words:
            yield word, round(zipf * STEPS)


def lookup(words: Words, lowered: str) -> list[bytes]:
    """Return the entry of each word, b"" where no list has it."""
    found: list[bytes] = []
    get = words.entries.get
    for word in _WORD.findall(lowered.replace("\u2019", "'")):
        entry = get(word, b"")
        if entry or "'" not in word:
            found.append(entry)
        else:  # elf's, l'homme
            found += [get(part, b"") for part in word.split("'") if part != "s"]
        if len(found) >= MAX_WORDS:
            return found[:MAX_WORDS]
    return found


def word_evidence(words: Words, entries: Sequence[bytes]) -> dict[str, float]:
    """Return per language with a list the mean over words of max(0, zipf - UNKNOWN_OTHER)."""
    totals = [0.0] * len(words.languages)
    for entry in entries:
        for index, zipf in zip(entry[2::2], entry[3::2], strict=True):
            totals[index] += zipf / STEPS - UNKNOWN_OTHER
    count = max(1, len(entries))
    pairs = zip(words.languages, totals, strict=True)
    return {language: total / count for language, total in pairs if total}


def english_features(
    entries: Sequence[bytes],
    evidence: Mapping[str, float],
    lid: Mapping[str, float],
    lowered: str,
) -> tuple[float, ...]:
    """Return what the logistic model weighs, in the order of FEATURES."""
    best = next(iter(lid), "en")  # lid is in descending order
    lid_other = lid[best] if best != "en" else max([0.0, *list(lid.values())[1:2]])
    scores: list[float] = []
    unknown = common = foreign = 0
    own = 0.0
    for entry in entries:
        if not entry:
            unknown += 1
            scores.append(0.0)
            continue
        english, other = entry[0] / STEPS, entry[1] / STEPS
        own += max(0.0, english - UNKNOWN_OTHER)
        score = max(english, UNKNOWN_ENGLISH) - max(other, UNKNOWN_OTHER)
        scores.append(min(4.0, max(-4.0, score)))
        common += english >= 3.0
        foreign += not entry[0]
    count = max(1, len(entries))
    lead = own / count - max(evidence.values(), default=0.0)
    letters = sum(map(len, _WORD.findall(lowered))) if not lowered.isascii() else 0
    accented = len(_NOT_ASCII_LETTER.findall(lowered)) / letters if letters else 0.0
    return (
        math.log(max(lid.get("en", 0.0), 0.001)),
        math.log(max(lid_other, 0.001)),
        max(-20.0, min(20.0, sum(scores))),
        sum(scores) / count,
        min(scores, default=0.0),
        max(scores, default=0.0),
        lead,
        max(-20.0, min(20.0, lead * count)),
        unknown / count,
        common / count,
        foreign / count,
        min(count, 12),
        accented,
        math.log(min(len(lowered), 100) + 1),
    )


FEATURES: dict[str, float] = {
    "log of lid.176's p(en)": 0.2752,
    "log of lid.176's greatest other p": -0.3987,
    "sum of scores": 0.1393,
    "mean score": 0.2821,
    "least score": 0.4556,
    "greatest score": -0.0955,
    "mean lead over the best other language": 0.7218,
    "sum of that lead": 0.2325,
    "share of words in no list": -3.4068,
    "share of words with an English zipf of 3": 3.4299,
    "share of words in other lists only": -2.2391,
    "number of words, at most 12": -0.4496,
    "share of letters beyond a-z": -10.8840,
    "log of 1 + length, at most 100": 0.6688,
}
"""The features in order with their weights; a score is English zipf - greatest zipf elsewhere."""
INTERCEPT = -0.9355

WORD_WEIGHT = 2.5
NO_LIST = 3.75
"""Stands for the word evidence of languages without a list: an average zipf of 3."""
RELATED_PENALTY = 0.3
SHARPNESS = 0.5
"""Softens the softmax so that its values are probabilities; fitted."""

_WEIGHTS = tuple(FEATURES.values())
_LEAST = 0.002
_LOG_LEAST = math.log(_LEAST)


def english_probability(features: Sequence[float]) -> float:
    """Return the logistic model's p(English), for texts of which half are English."""
    logit = INTERCEPT + sum(map(operator.mul, _WEIGHTS, features))
    return 1 / (1 + math.exp(-logit)) if logit > -700 else 0.0


def other_language(evidence: Mapping[str, float], lid: Mapping[str, float]) -> tuple[str, float]:
    """Return the best label but English, and its share among all but English; ("und", 0) if none.

    score(l) = log lid(l) + WORD_WEIGHT * evidence(l), NO_LIST where l has no word list.
    """
    scores = {code: WORD_WEIGHT * value + _LOG_LEAST for code, value in evidence.items()}
    for code, probability in lid.items():
        if code == "en" or code in NOT_LATIN:
            continue
        log = math.log(probability) if probability > _LEAST else _LOG_LEAST
        if code in WORD_LISTS:
            scores[code] = log + WORD_WEIGHT * evidence.get(code, 0.0)
        elif code in RELATED:
            words = WORD_WEIGHT * evidence.get(RELATED[code], 0.0)
            scores[code] = log + words - RELATED_PENALTY
        else:
            scores[code] = log + NO_LIST
    if not scores:
        return "und", 0.0
    best = max(scores, key=scores.__getitem__)
    top = scores[best]
    return best, 1 / sum([math.exp(SHARPNESS * (score - top)) for score in scores.values()])

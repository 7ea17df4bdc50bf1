"""Measures of documents: lines, sentences, and how much of a text repeats itself.

Sources: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher"
(2021), appendix A.1.1 and table A1; Raffel et al., "Exploring the Limits of Transfer Learning with
a Unified Text-to-Text Transformer" (2020), section 2.2. Where the papers leave a choice: a repeated
line, paragraph or run of words is its second and every later occurrence, and characters are those
of words, each counted once, as in RedPajama-V2's quality signals (Weber et al. 2024).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("\u2022", "\u2023", "\u25e6", "\u25aa", "\u25cf", "\u2043", "-", "*")
ELLIPSES = ("...", "\u2026")
TERMINALS = (".", "!", "?", '"', "\u201d", "\u3002", "\uff01", "\uff1f")
"""Period, exclamation mark, question mark, end quotation mark; and the ideographic ones."""
POLICIES = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
MIN_LINE_WORDS = 5
"""Of a line that C4 keeps."""

# One per sentence within a line; the end of the line ends the last one.
_SENTENCE_END = re.compile(r"[.!?][\"')\]\u201d\u2019]?\s+(?=\S)|[\u3002\uff01\uff1f](?=.)")


class Repeats(NamedTuple):
    """Of lines or paragraphs: share that repeats, and share of the text's characters in those."""

    share: float
    character_share: float


def lines_of(text: str) -> list[str]:
    """Return the lines with something in them, without outer white space."""
    return [line for line in map(str.strip, text.splitlines()) if line]


def paragraphs_of(text: str) -> list[str]:
    """Return runs of lines between lines of white space, joined."""
    found: list[list[str]] = [[]]
    for line in map(str.strip, text.splitlines()):
        if line:
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def repeats(items: Sequence[str]) -> Repeats:
    """Return the share of items that came before, and of the items' characters in those."""
    if len(set(items)) == len(items):
        return Repeats(0.0, 0.0)
    seen: set[str] = set()
    count = characters = 0
    for item in items:
        if item in seen:
            count += 1
            characters += len(item)
        seen.add(item)
    return Repeats(count / len(items), characters / sum(map(len, items)))


def starting_share(lines: Sequence[str], starts: tuple[str, ...]) -> float:
    """Return the share of lines that start with one of some strings."""
    return sum(line.startswith(starts) for line in lines) / len(lines) if lines else 0.0


def ending_share(lines: Sequence[str], ends: tuple[str, ...]) -> float:
    """Return the share of lines that end with one of some strings."""
    return sum(line.endswith(ends) for line in lines) / len(lines) if lines else 0.0


def symbol_ratio(text: str, num_words: int) -> float:
    """Return hashes or ellipses, whichever are more, per word."""
    ellipses = sum(map(text.count, ELLIPSES))
    return max(text.count("#"), ellipses) / num_words if num_words else 0.0


def alphabetic_share(words: Sequence[str]) -> float:
    """Return the share of words with at least one letter."""
    if not words:
        return 0.0
    return sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) / len(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaning:
    """What C4 would do to the lines of a text. Shares of lines; sentences are of kept lines."""

    terminal: float
    kept: float
    javascript: int
    policy: int
    sentences: int


def clean_lines(lines: Sequence[str], words_of_line: Sequence[int]) -> Cleaning:
    """Apply C4's rules for lines.

    A line is kept if it ends in a terminal mark but not in "...", has at least five words, and
    names neither javascript nor a policy. "Javascript" counts in any case.
    """
    terminal = kept = javascript = policy = sentences = 0
    scripts, notices = _lines_with(lines, ("javascript",)), _lines_with(lines, POLICIES)
    for number, (line, num_words) in enumerate(zip(lines, words_of_line, strict=True)):
        script, notice = number in scripts, number in notices
        ends = line.endswith(TERMINALS) and not line.endswith("...")
        terminal += ends
        javascript += script
        policy += notice
        if ends and num_words >= MIN_LINE_WORDS and not script and not notice:
            kept += 1
            sentences += 1 + sum(1 for _ in _SENTENCE_END.finditer(line))
    count = max(len(lines), 1)
    return Cleaning(
        terminal=terminal / count,
        kept=kept / count,
        javascript=javascript,
        policy=policy,
        sentences=sentences,
    )


def _lines_with(lines: Sequence[str], phrases: Sequence[str]) -> frozenset[int]:
    """Return the numbers of the lines with one of the phrases, in any case."""
    whole = "\n".join(lines).lower()
    if not any(phrase in whole for phrase in phrases):
        return frozenset()
    return frozenset(
        number
        for number, line in enumerate(lines)
        if any(phrase in line.lower() for phrase in phrases)
    )


class _Numbers(dict[str, int]):
    """The number of every word, in order of appearance."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


@dataclass(frozen=True, kw_only=True, slots=True)
class Repetition:
    """Per text: (texts,) character shares of table A1, by n; 0 where nothing repeats."""

    top: dict[int, Floats]
    duplicate: dict[int, Floats]


class WordRuns:
    """Runs of words of many texts at once; only runs whose shorter runs repeat are looked at."""

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        numbers = _Numbers()
        self._words = np.concatenate(
            [np.empty(0, np.int64), *(_numbered(words, numbers) for words in texts)]
        )
        counts = np.array([len(words) for words in texts], np.int64)
        self._num_texts, self._num_words = len(texts), max(len(numbers), 1)
        self._text = np.repeat(np.arange(len(texts)), counts)
        self._ends = np.repeat(np.cumsum(counts), counts)
        self.lengths = np.fromiter(map(len, numbers), np.int64, len(numbers))[self._words]
        self._totals = np.maximum(self._sums(self.lengths, self._text), 1)

    def repetition(self) -> Repetition:
        """Return the shares of characters in repeated runs of words."""
        top, duplicate = {}, {}
        places = np.arange(len(self._words))
        keys = self._text * self._num_words + self._words
        for n in range(1, DUPLICATE_NGRAMS[-1] + 1):
            if n > 1:
                places, keys = self._longer(places, keys, n)
            order = np.argsort(keys, kind="stable")
            new = np.ones(len(order), bool)
            new[1:] = keys[order[1:]] != keys[order[:-1]]
            runs = np.cumsum(new) - 1
            sizes = np.bincount(runs)
            if n in TOP_NGRAMS:
                top[n] = self._top(places[order], np.flatnonzero(new), sizes, n)
            if n in DUPLICATE_NGRAMS:
                duplicate[n] = self._covered(places[order[~new]], n)
            repeated = np.flatnonzero(sizes[runs] > 1)
            places, keys = places[order[repeated]], runs[repeated]
            back = np.argsort(places, kind="stable")
            places, keys = places[back], keys[back]
        return Repetition(top=top, duplicate=duplicate)

    def _longer(self, places: Indices, keys: Indices, n: int) -> tuple[Indices, Indices]:
        """Return runs of n words whose first and last n - 1 words both repeat, by place."""
        inside = places + n <= self._ends[places] if len(places) else np.empty(0, bool)
        inside[:-1] &= places[1:] == places[:-1] + 1
        inside[-1:] = False if n > 2 else inside[-1:]
        at = np.flatnonzero(inside)
        last = self._words[places[at] + n - 1]
        return places[at], keys[at] * self._num_words + last

    def _top(self, places: Indices, starts: Indices, sizes: Indices, n: int) -> Floats:
        """Return the share of the most frequent run; of equally frequent ones the longest, then
        the first."""
        often = np.flatnonzero(sizes > 1)
        firsts = places[starts[often]]
        characters = self.lengths[firsts[:, None] + np.arange(n)].sum(axis=1)
        texts = self._text[firsts]
        best = np.lexsort((firsts, -characters, -sizes[often], texts))
        _, where = np.unique(texts[best], return_index=True)
        chosen = often[best[where]]
        members = np.concatenate(
            [np.empty(0, np.int64), *(places[starts[c] : starts[c] + sizes[c]] for c in chosen)]
        )
        return self._covered(members, n)

    def _covered(self, places: Indices, n: int) -> Floats:
        """Return the share of each text's characters within runs of n words at some places."""
        change = np.zeros(len(self._words) + 1, np.int64)
        np.add.at(change, places, 1)
        np.subtract.at(change, places + n, 1)
        words = np.flatnonzero(np.cumsum(change))
        return self._sums(self.lengths[words], self._text[words]) / self._totals

    def _sums(self, values: Indices, texts: Indices) -> Floats:
        found = np.bincount(texts, weights=values, minlength=self._num_texts)
        return found.astype(np.float64)  # bincount of nothing is of integers


def _numbered(words: Sequence[str], numbers: _Numbers) -> Indices:
    return np.fromiter(map(numbers.__getitem__, words), np.int64, len(words))

"""Words: by white space, and one per character in scripts that write none; those of numbers."""

from __future__ import annotations

import re

NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip
"""The word of each number, from 0."""
# Han, kana and their extensions: each such character is a word of its own, as word processors
# count. Their punctuation and the ideographic space only separate.
_NO_SPACES = re.compile(
    "[\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003ffff]"
)
_THEIR_PUNCTUATION = re.compile("[\u3000-\u3004\u3008-\u3020\u30fb\uff01-\uff0f\uff1a-\uff20]")


def split_words(text: str) -> list[str]:
    """Return the words: ``str.split``, and every Han or kana character by itself.

    Text without such characters gives exactly ``text.split()``, DataComp's words. Thai, Lao, Khmer
    and Burmese write no spaces either: a run of them is one word.
    """
    if text.isascii() or not _NO_SPACES.search(text):
        return text.split()
    return _NO_SPACES.sub(r" \g<0> ", _THEIR_PUNCTUATION.sub(" ", text)).split()

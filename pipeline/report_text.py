"""Text out of data, made safe to print: escaping is the template's work, the rest is here."""

from __future__ import annotations

import unicodedata
from typing import Any

from winnow.pipeline.report_views import format_number

_INVISIBLE = frozenset({"Cc", "Cs", "Co", "Cn"})
_DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Marks that would turn the text around them, too."""


def plain(text: str, limit: int) -> str:
    """Return text on one line, without control characters, at most ``limit`` characters long."""
    kept = []
    for character in text[: 4 * limit]:
        if character.isspace():
            kept.append(" ")
        elif character in _DIRECTION or unicodedata.category(character) in _INVISIBLE:
            kept.append("\ufffd")
        else:
            kept.append(character)
    found = " ".join("".join(kept).split())
    return found if len(found) <= limit else found[: limit - 1].rstrip() + "\u2026"


def show(value: Any, limit: int = 60) -> str:
    """Return a value of any column in a few characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return format_number(value)
    if isinstance(value, bytes):
        return plain(value.hex(), limit)
    if isinstance(value, list):
        return f"{len(value):,} values"
    return plain(str(value), limit)

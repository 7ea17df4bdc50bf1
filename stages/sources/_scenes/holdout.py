"""What validation and test scenes hold that training scenes never do.

Every rule is a hash or a table of names: it looks at no pixel, score or caption, and a concept that
is added later moves no other one.

    pairs        An unordered pair of concepts belongs to one part; a scene holds pairs of its part
                 only. Concepts lie in a 10 x 10 grid (by hash): a pair in one row is of validation,
                 else one in one column is of test, all others are of training. So four things of a
                 held-out part that fit together are easy to find. About 10, 9 and 81 %.
    roles        A concept's place in a stated relation ("cat", "left of") is held out for 5 % each:
                 no caption of another part says it, in either wording ("a dog to the right of a
                 cat" says it too). Pictures may show it, and every relation word is in all parts: a
                 word that training never saw could not be tested. The relation between two given
                 concepts follows the pair.
    backgrounds  Each pattern has one color of validation and one of test; no color is held out from
                 more than one pattern per part. A second color is never held out for another part.
    templates    ``captions.TEMPLATES``: no frame is in two parts; all their words are in training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import MappingProxyType

from winnow.contracts.identity import stable_hash64
from winnow.stages.sources._scenes.model import (
    BACKGROUND_COLORS,
    PATTERNS,
    Part,
    Pattern,
    Relation,
)

EVALUATION: tuple[Part, ...] = ("validation", "test")
INVERSE = MappingProxyType(
    {
        "left of": "right of",
        "right of": "left of",
        "above": "below",
        "below": "above",
        "on": "under",
    }
)
"""The other concept's place in a relation."""


@functools.cache
def _cell(concept: str) -> tuple[int, int]:
    number = stable_hash64("part", concept)
    return number % 10, number // 10 % 10


def pair_part(a: str, b: str) -> Part:
    """Return the part that an unordered pair of different concepts belongs to."""
    (row, column), (other_row, other_column) = _cell(a), _cell(b)
    return "validation" if row == other_row else "test" if column == other_column else "train"


def fits(part: Part, name: str, others: Sequence[str]) -> bool:
    """Whether a scene of this part may hold the concept beside the others."""
    return part == "all" or all(name == other or pair_part(name, other) == part for other in others)


@functools.cache
def role_part(concept: str, predicate: str) -> Part:
    """Return the only part whose captions say the concept in this place; "all" for most."""
    number = stable_hash64("role", concept, predicate) % 20
    return "validation" if number == 0 else "test" if number == 1 else "all"


def may_say(part: Part, relation: Relation) -> bool:
    """Whether captions of this part may say the relation."""
    roles = (
        role_part(relation.subject, relation.predicate),
        role_part(relation.object, INVERSE[relation.predicate]),
    )
    return part == "all" or all(role in ("all", part) for role in roles)


def background_part(pattern: Pattern, color: str) -> Part:
    """Return the part that a background's pattern and first color belong to."""
    place = (3 * PATTERNS.index(pattern) + BACKGROUND_COLORS.index(color)) % 10
    return "validation" if place == 0 else "test" if place == 5 else "train"


@functools.cache
def backgrounds(part: Part, patterns: tuple[Pattern, ...]) -> tuple[tuple[Pattern, str], ...]:
    """Return the part's patterns with their first color."""
    return tuple(
        (pattern, color)
        for pattern in patterns
        for color in BACKGROUND_COLORS
        if background_part(pattern, color) == part
    )


@functools.cache
def second_colors(part: Part, pattern: Pattern, color: str) -> tuple[str, ...]:
    """Return what the second color may be."""
    return tuple(
        other
        for other in BACKGROUND_COLORS
        if other != color and background_part(pattern, other) in ("train", part)
    )

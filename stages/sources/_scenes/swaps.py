"""Captions that are false of a picture by one fact, in the words and the template of the true one.

Every candidate is checked against the scene's description (``holds``), and says nothing that the
scene's part holds out for another part (``holdout``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from winnow.stages.sources._scenes.captions import MAX_COUNT, Statement
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.holdout import fits, may_say
from winnow.stages.sources._scenes.model import Group, Part, Predicate, Relation, Scene, Size
from winnow.stages.sources._scenes.sprites import CONCEPT, CONCEPTS, PAINTS

SINGLE_SHARE = 0.22
"""Share of the rows without a repeated concept whose count is swapped (upwards: there is no other
way), so that about as many counts are swapped upwards as downwards."""
DOWN_SHARE = 0.8
"""Share of the swapped counts above one that are swapped downwards."""
_DISTINCT = 120.0
"""Least distance of two paints in RGB: red for orange would be false, but hard to see."""
_UNLIKE = MappingProxyType({"small": 0.3, "large": 0.4})
"""A thing this far from the bound of a size word (``Scene.side``) is plainly not of that size."""
_OPPOSITE: Mapping[str, Predicate] = MappingProxyType(
    {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
)
_SIZES: Mapping[Size, Size] = MappingProxyType({"small": "large", "large": "small"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Swaps:
    """False captions; None where the true one does not state what could be swapped.

    attribute: colors or sizes of two things exchanged, a size word moved to another thing, or a
        color or size replaced. relation: the two things exchanged, or left and right, or above and
        below. count: one number replaced. hard_negative: one of these, or one thing replaced by one
        that is not there; each kind that there is equally likely.
    """

    attribute: str | None = None
    relation: str | None = None
    count: str | None = None
    hard_negative: str | None = None


def swaps(said: Statement, drawn: Scene, part: Part, draw: Draw) -> Swaps:
    """Return the false captions for a true one."""
    attribute = _pick(draw, drawn, (_exchanged(said, drawn), _replaced(said)))
    relation = _pick(draw, drawn, (_related(said, part),))
    count = _pick(draw, drawn, (_counted(said, draw),))
    thing = _pick(draw, drawn, (_other_thing(said, part, draw),))
    found = [text for text in (attribute, relation, count, thing) if text]
    return Swaps(
        attribute=attribute,
        relation=relation,
        count=count,
        hard_negative=draw.pick(found) if found else None,
    )


def holds(said: Statement, drawn: Scene) -> bool:
    """Whether all that the caption says of the scene's things is so."""
    real = {g.concept: g for g in drawn.groups}
    if set(real) != {g.concept for g in said.groups}:
        return False
    for group in said.groups:
        size = group.size if said.sizes else None
        there = real[group.concept]
        if (
            group.count != there.count
            or group.color != there.color
            or size not in (None, there.size)
        ):
            return False
    return said.relation is None or said.relation in drawn.relations


def _pick(draw: Draw, drawn: Scene, preferred: tuple[Iterator[Statement], ...]) -> str | None:
    """Return one of the first candidates that are false."""
    for candidates in preferred:
        false = [c for c in candidates if not holds(c, drawn)]
        if false:
            return draw.pick(false).text
    return None


def _with(said: Statement, *groups: Group, **changes: Any) -> Statement:
    """Return the statement with these groups in the place of those of the same concept."""
    new = {g.concept: g for g in groups}
    return replace(said, groups=tuple(new.get(g.concept, g) for g in said.groups), **changes)


def _exchanged(said: Statement, drawn: Scene) -> Iterator[Statement]:
    if not said.counts:
        return
    for a, b in itertools.permutations(said.groups, 2):
        if a.color and b.color and _distinct(a.color, b.color):
            yield _with(said, replace(a, color=b.color), replace(b, color=a.color))
        if said.sizes and a.size and (b.size or _is_unlike(drawn, b, a.size)):
            yield _with(said, replace(a, size=b.size), replace(b, size=a.size))


def _is_unlike(drawn: Scene, group: Group, word: str) -> bool:
    """Whether every instance is plainly not small, or plainly not large."""
    sides = [drawn.side(t.box) for t in drawn.objects if t.concept == group.concept]
    return min(sides) >= _UNLIKE[word] if word == "small" else max(sides) <= _UNLIKE[word]


def _replaced(said: Statement) -> Iterator[Statement]:
    if not said.counts:
        return
    for group in said.groups:
        if group.color:
            for color in PAINTS:
                if _distinct(group.color, color):
                    yield _with(said, replace(group, color=color))
        if said.sizes and group.size:
            # As often as a color: there are about five to replace one by.
            yield from [_with(said, replace(group, size=_SIZES[group.size]))] * 5


def _distinct(a: str, b: str) -> bool:
    return math.dist(PAINTS[a], PAINTS[b]) >= _DISTINCT


def _related(said: Statement, part: Part) -> Iterator[Statement]:
    relation = said.relation
    if relation is None:
        return
    other = Relation(subject=relation.object, predicate=relation.predicate, object=relation.subject)
    found = [other]
    if relation.predicate in _OPPOSITE:
        found.append(replace(relation, predicate=_OPPOSITE[relation.predicate]))
    yield from (replace(said, relation=r) for r in found if may_say(part, r))


def _counted(said: Statement, draw: Draw) -> Iterator[Statement]:
    if not said.counts:
        return
    several = [g for g in said.groups if g.count > 1]
    if not several and not draw.chance(SINGLE_SHARE):
        return
    down = bool(several) and draw.chance(DOWN_SHARE)
    for group in several or said.groups:
        count = group.count + (-1 if down else 1)
        if count <= MAX_COUNT:
            yield _with(said, replace(group, count=count))


def _other_thing(said: Statement, part: Part, draw: Draw) -> Iterator[Statement]:
    old = draw.pick(said.groups)
    here = [g.concept for g in said.groups]
    rest = [name for name in here if name != old.concept]
    for _ in range(1000):
        name = draw.pick(CONCEPTS)
        if name in here or (old.color and not CONCEPT[name].paint) or not fits(part, name, rest):
            continue
        relation = _renamed(said.relation, old.concept, name)
        if relation is None or may_say(part, relation):
            groups = tuple(replace(g, concept=name) if g is old else g for g in said.groups)
            yield replace(said, groups=groups, relation=relation)
            return


def _renamed(relation: Relation | None, old: str, new: str) -> Relation | None:
    if relation is None:
        return None
    return replace(
        relation,
        subject=new if relation.subject == old else relation.subject,
        object=new if relation.object == old else relation.object,
    )

"""Scene description -> a paragraph: every group of objects in a sentence, in random order."""

from __future__ import annotations

from dataclasses import dataclass

from winnow.stages.sources._scenes.captions import (
    PREDICATE_WORDS,
    background_phrase,
    noun_phrase,
)
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.holdout import may_say
from winnow.stages.sources._scenes.model import Group, Part, Relation, Scene
from winnow.stages.sources._scenes.sprites import CONCEPT

SENTENCES = (
    "There {be} {thing}.",
    "The picture shows {thing}.",
    "You can see {thing}.",
    "{thing} {be} visible.",
    "It also has {thing}.",
)
RELATION_SHARE = 0.4
"""Chance that a group is related to one that was named before it, where that is true of all."""
BACKGROUND_SHARE = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """Sentences about one scene. groups: in the order in which they are named, each with its count
    and color; relations: those that are said."""

    text: str
    groups: tuple[Group, ...]
    relations: tuple[Relation, ...]


def paragraph(scene: Scene, draw: Draw, part: Part = "all") -> Paragraph:
    """Return one or two sentences per group, in random order, and perhaps one of the background.

    The first sentence about a group states its count, and its color where it is painted; the second
    one, for some, where it is from a group that was named before.
    """
    left = list(scene.groups)
    named: list[Group] = []
    related: list[Relation] = []
    sentences = []
    while left:
        group = left.pop(draw.integer(0, len(left) - 1))
        sentences.append(_introduced(group, draw, is_first=not named))
        known = {g.concept for g in named}
        possible = [
            r
            for r in scene.relations
            if r.subject == group.concept and r.object in known and may_say(part, r)
        ]
        if possible and draw.chance(RELATION_SHARE):
            related.append(draw.pick(possible))
            counts = {g.concept: g.count for g in (*named, group)}
            sentences.append(_related(related[-1], counts))
        named.append(group)
    if draw.chance(BACKGROUND_SHARE):
        sentences.append(f"All of it is on {background_phrase(scene.background)}.")
    return Paragraph(text=" ".join(sentences), groups=tuple(named), relations=tuple(related))


def _introduced(group: Group, draw: Draw, *, is_first: bool) -> str:
    template = draw.pick(SENTENCES[:-1] if is_first else SENTENCES)
    thing, be = noun_phrase(group, with_size=False), _be(group.count)
    if template.startswith("{thing}"):
        thing = thing[0].upper() + thing[1:]
    return template.format(thing=thing, be=be)


def _related(relation: Relation, counts: dict[str, int]) -> str:
    one, two = (_definite(name, counts[name]) for name in (relation.subject, relation.object))
    where = PREDICATE_WORDS[relation.predicate]
    return f"The {one} {_be(counts[relation.subject])} {where} the {two}."


def _definite(name: str, count: int) -> str:
    return CONCEPT[name].name if count == 1 else CONCEPT[name].plural


def _be(count: int) -> str:
    return "is" if count == 1 else "are"

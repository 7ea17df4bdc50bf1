"""Forms in which a scene's facts stand before the first prompt, where a captioner has its prefix.

A form is a text (a paragraph, a list of tags), or a list of slots: positions whose embedding is a
weighted sum of the embeddings of some words, as a connector's tokens are mixtures. One slot may be
an object, a patch of a coarse raster, or a learned query that holds several things.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from winnow.stages.sources._scenes import Group, Scene, SceneObject
from winnow.stages.sources._scenes.captions import (
    PREDICATE_WORDS,
    background_phrase,
    noun_phrase,
)
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.paragraphs import paragraph as plain_paragraph

T = TypeVar("T")
COLUMNS, ROWS = ("left", "middle", "right"), ("top", "center", "bottom")
PATTERN_WORDS = {"solid": "", "gradient": "fades", "noise": "grainy", "stripes": "striped",
                 "checker": "checkered", "dots": "dotted", "blobs": "blurry"}  # fmt: skip
SIDES = (5, 7, 7, 7, 10, 14)
RASTER_ONLY_ON = 0.6
OPENINGS = ("tags: {}", "{}", "In the picture: {}.", "{}.")


@dataclass(frozen=True, slots=True)
class Slot:
    """One position: phrases and their weights."""

    words: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What stands before the first prompt, and the scene without the facts that are not in it.

    prose: the text is worth learning to write, not only to read.
    """

    known: Scene
    text: str = ""
    slots: tuple[Slot, ...] = ()
    prose: bool = False
    has_ground: bool = False

    @property
    def order(self) -> tuple[str, ...]:
        """The things of the scene in the order in which the slots first hold them."""
        first: dict[str, int] = {}
        for place, slot in enumerate(self.slots):
            for words, _ in slot.words:
                first.setdefault(words, place)
        phrases = {
            group.concept: (group.concept, _bare_phrase(group)) for group in self.known.groups
        }
        last = len(self.slots)
        return tuple(
            sorted(phrases, key=lambda name: min(first.get(p, last) for p in phrases[name]))
        )


def soft_facts(described: Scene, draw: Draw) -> Facts:
    """Return slots: one per object, a raster, or queries that hold one to three things each."""
    kind = draw.uniform(0, 1)
    if kind < 0.5:
        return object_slots(described, draw)
    if kind < 0.8:
        return raster(described, draw, draw.pick(SIDES))
    return query_slots(described, draw)


def text_facts(described: Scene, draw: Draw) -> Facts:
    """Return a list of tags, or a paragraph."""
    return _tags(described, draw) if draw.chance(0.5) else prose_facts(described, draw)


def prose_facts(described: Scene, draw: Draw) -> Facts:
    """Return a paragraph in the words of recipes/scenes-crowds.yaml."""
    made = plain_paragraph(described, draw)
    ground = background_phrase(described.background)
    known = replace(described, relations=made.relations)
    return Facts(known, text=made.text, prose=True, has_ground=ground in made.text)


def tag_text(described: Scene, draw: Draw) -> str:
    """Return every group once, in random order, with count and color."""
    tags = [noun_phrase(g, with_size=False) for g in described.groups]
    return f"tags: {', '.join(shuffled(tags, draw))}"


def shuffled(values: Sequence[T], draw: Draw) -> list[T]:
    """Return all values in random order."""
    return [v for _, v in sorted(((draw.uniform(0, 1), v) for v in values), key=lambda p: p[0])]


def _tags(described: Scene, draw: Draw) -> Facts:
    """Tags with counts, or one per object with its place; some with relations, some with ground."""
    has_ground, relations = draw.chance(0.5), described.relations
    by_object = draw.chance(0.4)
    if by_object:
        placed = draw.chance(0.5)
        tags = [_words(thing) + (f" {_place(thing)}" if placed else "")
                for thing in shuffled(described.objects, draw)]  # fmt: skip
        if not placed:
            relations = ()
    else:
        relations = tuple(shuffled(relations, draw)[: draw.integer(0, 3)])
        article = draw.chance(0.5)
        tags = [noun_phrase(g, with_size=False) for g in described.groups]
        tags = [tag if article else tag.removeprefix("a ").removeprefix("an ") for tag in tags]
        tags += [f"{r.subject} {PREDICATE_WORDS[r.predicate]} {r.object}" for r in relations]
        tags = shuffled(tags, draw)
    if has_ground:
        tags.insert(draw.integer(0, len(tags)), background_phrase(described.background))
    if draw.chance(0.2):
        tags += [draw.pick(tags) for _ in range(draw.integer(1, 3))]
    text = draw.pick(OPENINGS).format(draw.pick((", ", ", ", "; ", " ")).join(tags))
    return Facts(replace(described, relations=relations), text=text, has_ground=has_ground)


def bare_slots(described: Scene, draw: Draw) -> Facts:
    """One slot per kind of object, of its name and color; nothing else is told."""
    first = {thing.concept: thing for thing in described.objects}
    slots = tuple(Slot(_object_bag(thing, draw, placed=False)) for thing in first.values())
    return Facts(replace(described, relations=()), slots=slots)


def object_slots(described: Scene, draw: Draw) -> Facts:
    """One slot per object or per group, in random order; a few for the ground."""
    has_ground = draw.chance(0.6)
    slots: list[Slot]
    if draw.chance(0.6):
        placed = draw.chance(0.6)
        things = shuffled(described.objects, draw)
        slots = [Slot(_object_bag(thing, draw, placed=placed)) for thing in things]
        relations = described.relations if placed else ()
    else:
        slots, relations = [], ()
        for group in shuffled(described.groups, draw):
            slots.append(Slot(((_bare_phrase(group), _weight(draw)),)))
    if has_ground:
        for _ in range(draw.integer(1, 3)):
            slots.insert(draw.integer(0, len(slots)), Slot(_ground_bag(described, draw)))
    return Facts(replace(described, relations=relations), slots=tuple(slots), has_ground=has_ground)


def query_slots(described: Scene, draw: Draw) -> Facts:
    """Slots that hold one to three objects each, some of them the ground alone; every object is in
    one slot at least."""
    count = draw.pick((8, 16, 32, 49))
    placed = draw.chance(0.7)
    most = 1 if count > len(described.objects) and draw.chance(0.5) else 3
    bags: list[list[tuple[str, float]]] = [[] for _ in range(count)]
    wanted = [*described.objects, *(draw.pick(described.objects) for _ in range(count // 2))]
    for thing in wanted:
        free = [bag for bag in bags if len(bag) < 3 * most]
        if free:
            draw.pick(free).extend(_object_bag(thing, draw, placed=placed))
    slots = [Slot(tuple(bag) or _ground_bag(described, draw)) for bag in bags]
    relations = described.relations if placed else ()
    return Facts(replace(described, relations=relations), slots=tuple(slots), has_ground=True)


def raster(described: Scene, draw: Draw, side: int) -> Facts:
    """A slot per cell, row by row: what lies in it, mixed with the ground."""
    placed, reach = draw.chance(0.4), draw.uniform(0.0, 0.5) / side
    slots = []
    for row in range(side):
        for column in range(side):
            x, y = (column + 0.5) / side, (row + 0.5) / side
            bag: list[tuple[str, float]] = []
            for thing in described.objects:
                left, top, right, bottom = thing.box
                if left - reach < x < right + reach and top - reach < y < bottom + reach:
                    bag += _object_bag(thing, draw, placed=placed)
            if not bag or draw.chance(RASTER_ONLY_ON):
                share = 1.0 if not bag else 0.4
                bag += [(word, share * weight) for word, weight in _ground_bag(described, draw)]
            slots.append(Slot(tuple(bag)))
    return Facts(described, slots=tuple(slots), has_ground=True)


def _object_bag(thing: SceneObject, draw: Draw, *, placed: bool) -> tuple[tuple[str, float], ...]:
    bag = [(thing.concept, _weight(draw))]
    if thing.color:
        bag.append((thing.color, _weight(draw)))
    if placed:
        bag += [(word, 0.6 * _weight(draw)) for word in _place(thing).split()]
    return tuple(bag)


def _ground_bag(described: Scene, draw: Draw) -> tuple[tuple[str, float], ...]:
    ground = described.background
    two = ground.color2 if ground.pattern in ("gradient", "blobs") else ""
    words = ("background", ground.color, two, PATTERN_WORDS[ground.pattern])
    return tuple((word, _weight(draw)) for word in words if word)


def _bare_phrase(group: Group) -> str:
    return noun_phrase(group, with_size=False).removeprefix("a ").removeprefix("an ")


def _weight(draw: Draw) -> float:
    return draw.uniform(0.6, 1.3)


def _place(thing: SceneObject) -> str:
    left, top, right, bottom = thing.box
    column, row = int(1.4999 * (left + right)), int(1.4999 * (top + bottom))
    return f"{ROWS[min(2, max(0, row))]} {COLUMNS[min(2, max(0, column))]}"


def _words(thing: SceneObject) -> str:
    return f"{thing.color} {thing.concept}" if thing.color else thing.concept

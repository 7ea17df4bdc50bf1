"""What a scene is: options, description, and the words that follow from its geometry.

Geometry is in fractions of the canvas, origin top left.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import Literal

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import stable_hash64
from winnow.stages.sources._scenes.sprites import CONCEPT, CONCEPTS

Box = tuple[float, float, float, float]
Part = Literal["all", "train", "validation", "test"]
Size = Literal["small", "large"]
Predicate = Literal["left of", "right of", "above", "below", "on"]
Pattern = Literal["solid", "gradient", "noise", "stripes", "checker", "dots", "blobs"]
PATTERNS: tuple[Pattern, ...] = (
    "solid",
    "gradient",
    "noise",
    "stripes",
    "checker",
    "dots",
    "blobs",
)
BACKGROUND_COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "white",
)  # fmt: skip
LEAST_CONCEPTS = 80
"""With fewer, some concept of a held-out part has nothing that fits beside it (``holdout``)."""
SMALL, LARGE = 0.2, 0.5
"""Bounds of the size words: square root of the box's area over the canvas's shorter side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneOptions:
    """What can be drawn; a scene is a pure function of seed, index and these.

    min_objects, max_objects: number of object instances, each number equally likely.
    sizes: least and greatest side in pixels (an elongated scene may exceed the greatest).
    aspects: least and greatest width / height.
    weights, zipf_exponent: how often each concept comes: "uniform", or 1 / rank ** exponent, where
        the ranks are a fixed shuffle of the concepts.
    repeat_share: chance that an object is another instance of a concept already there.
    on_share: chance that one object stands on another, where there are two.
    color_share: chance that an object that can be painted is.
    max_rotation: degrees, in steps of 3, both ways.
    concepts: only these; empty = all.
    num_concepts: only the first so many of ``ranked_concepts()``, in any part; None = all.
    backgrounds: only these patterns.
    part: what the scenes hold out from one another (``holdout``); "all" holds out nothing. The
        other parts draw from all concepts.
    crowd: for pictures of many things: each is of another concept, as far as there are any (but
        for ``repeat_share``), and about as large as the others, so that none is too small to see.
    co_occurrence: chance that a further object is one of the fixed ``partners`` of an object that
        is already there, where one of them may be.
    """

    min_objects: int = 1
    max_objects: int = 4
    sizes: tuple[int, int] = (256, 512)
    aspects: tuple[float, float] = (0.6, 1.7)
    weights: Literal["uniform", "zipf"] = "uniform"
    zipf_exponent: float = 1.0
    repeat_share: float = 0.2
    on_share: float = 0.15
    color_share: float = 0.4
    max_rotation: int = 12
    concepts: tuple[str, ...] = ()
    backgrounds: tuple[Pattern, ...] = PATTERNS
    part: Part = "all"
    num_concepts: int | None = None
    crowd: bool = False
    co_occurrence: float = 0.0

    def __post_init__(self) -> None:
        _require(
            1 <= self.min_objects <= self.max_objects <= 16,
            f"objects={self.min_objects}..{self.max_objects}; use 1 <= least <= greatest <= 16",
        )
        _require(
            8 <= self.sizes[0] <= self.sizes[1] <= 4096,
            f"sizes={self.sizes}; use 8 <= least <= greatest <= 4096 pixels",
        )
        _require(
            0.1 <= self.aspects[0] <= self.aspects[1] <= 10,
            f"aspects={self.aspects}; use 0.1 <= least <= greatest <= 10",
        )
        unknown = [c for c in self.concepts if c not in CONCEPT]
        _require(not unknown, f"unknown concepts {unknown}; see CONCEPTS for the names")
        _require(bool(self.backgrounds), f"no background; use some of {PATTERNS}")
        _require(
            self.part == "all" or not self.concepts,
            f"part={self.part!r} draws from all concepts; leave concepts={self.concepts} out",
        )
        least, most = 1 if self.part == "all" else LEAST_CONCEPTS, len(CONCEPTS)
        _require(
            self.num_concepts is None or least <= self.num_concepts <= most,
            f"num_concepts={self.num_concepts}; use {least} to {most} with part={self.part!r}",
        )
        _require(
            self.num_concepts is None or not self.concepts,
            "num_concepts and concepts exclude one another; leave one of them out",
        )
        _require(
            0 <= self.co_occurrence <= 1,
            f"co_occurrence={self.co_occurrence}; use a chance from 0 to 1",
        )

    @property
    def pool(self) -> tuple[str, ...]:
        """The concepts that scenes are made of."""
        if self.num_concepts is not None:
            return ranked_concepts()[: self.num_concepts]
        return self.concepts or CONCEPTS


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneObject:
    """One instance. box: visible extent (left, top, right, bottom), fractions of the canvas.

    rotation: degrees counter-clockwise; flip: mirrored after turning; color: a key of PAINTS, or
    None where the sprite has its own colors.
    """

    concept: str
    box: Box
    rotation: int
    flip: bool
    color: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """``subject predicate object``, true of all instances of both concepts."""

    subject: str
    predicate: Predicate
    object: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """color, color2: keys of BACKGROUND_COLORS; texture: seed of what is random in the pattern."""

    pattern: Pattern
    color: str
    color2: str
    texture: int

    @property
    def id(self) -> str:
        """Name of this kind of background, without its texture."""
        two = self.color2 if self.pattern not in ("solid", "noise") else ""
        return ":".join(filter(None, (self.pattern, self.color, two)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """All instances of one concept; size: "small" or "large" where true of all of them."""

    concept: str
    count: int
    color: str | None
    size: Size | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What is in a picture. width, height: its own size in pixels (``render`` takes any size)."""

    seed: int
    index: int
    width: int
    height: int
    objects: tuple[SceneObject, ...]
    relations: tuple[Relation, ...]
    background: Background

    @property
    def groups(self) -> tuple[Group, ...]:
        """One entry per distinct concept, in order of first appearance."""
        found: dict[str, list[SceneObject]] = {}
        for thing in self.objects:
            found.setdefault(thing.concept, []).append(thing)
        return tuple(self._group(concept, things) for concept, things in found.items())

    def _group(self, concept: str, things: list[SceneObject]) -> Group:
        words = {self._size_word(thing.box) for thing in things}
        return Group(
            concept=concept,
            count=len(things),
            color=things[0].color,
            size=words.pop() if len(words) == 1 else None,
        )

    def side(self, box: Box) -> float:
        """Return the square root of a box's area over the canvas's shorter side."""
        area = (box[2] - box[0]) * self.width * (box[3] - box[1]) * self.height
        return math.sqrt(area) / min(self.width, self.height)

    def _size_word(self, box: Box) -> Size | None:
        side = self.side(box)
        return "small" if side < SMALL else "large" if side > LARGE else None


@functools.cache
def ranked_concepts() -> tuple[str, ...]:
    """Return all concepts in a fixed shuffle: a hash of the name, so a new one moves no other."""
    return tuple(sorted(CONCEPTS, key=lambda name: stable_hash64("rank", name)))


@functools.cache
def options_digest(options: SceneOptions) -> str:
    """Return 8 hex digits that stand for the options."""
    values = [(f.name, getattr(options, f.name)) for f in fields(options)]
    # Webs keep the digests, and so the URLs, that they had before there was such an option.
    added = (("part", "all"), ("num_concepts", None), ("crowd", False), ("co_occurrence", 0.0))
    flat = repr([value for value in values if value not in added])
    return f"{stable_hash64('options', flat) >> 32:08x}"


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RecipeError(f"scenes: {message}")  # noqa: EM102

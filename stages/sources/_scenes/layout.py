"""Where things go: seed, index and options -> scene description. No pixel is drawn here."""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from collections.abc import Sequence

from winnow.contracts.identity import stable_hash64
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.holdout import backgrounds, fits, second_colors
from winnow.stages.sources._scenes.model import (
    BACKGROUND_COLORS,
    Background,
    Box,
    Predicate,
    Relation,
    Scene,
    SceneObject,
    SceneOptions,
    options_digest,
)
from winnow.stages.sources._scenes.sprites import CONCEPT, PAINTS, extent

_GAP = 0.02  # least distance of two objects, as a fraction of the shorter side
_PARTNERS = 3  # concepts that come with a concept more often than chance has it
_SINK = 0.08  # how far an object stands in what it stands on, as a fraction of the latter's height


def scene(seed: int, index: int, options: SceneOptions) -> Scene:
    """Return the scene number ``index`` of a seed."""
    draw = Draw("scene", seed, index, options_digest(options))
    width, height = _canvas(draw, options)
    count = draw.integer(options.min_objects, options.max_objects)
    concepts, stands = _choose(draw, options, count)
    objects = _place(draw, options, (width, height), concepts, stands)
    background = _background(draw, options)
    return Scene(
        seed=seed,
        index=index,
        width=width,
        height=height,
        objects=objects,
        relations=_relations(objects, width, height, stands),
        background=background,
    )


def _background(draw: Draw, options: SceneOptions) -> Background:
    seconds: Sequence[str]
    if options.part == "all":
        color = draw.pick(BACKGROUND_COLORS)
        pattern = draw.pick(options.backgrounds)
        seconds = [c for c in BACKGROUND_COLORS if c != color]
    else:
        pattern, color = draw.pick(backgrounds(options.part, options.backgrounds))
        seconds = second_colors(options.part, pattern, color)
    return Background(
        pattern=pattern,
        color=color,
        color2=draw.pick(seconds),
        texture=draw.integer(0, 2**31 - 1),
    )


def _canvas(draw: Draw, options: SceneOptions) -> tuple[int, int]:
    aspect = math.exp(draw.uniform(math.log(options.aspects[0]), math.log(options.aspects[1])))
    ratio = max(aspect, 1 / aspect)
    low, high = options.sizes
    short = draw.uniform(low, max(low, high / ratio))
    sides = (max(low, round(short)), max(low, round(short * ratio)))
    return (sides[1], sides[0]) if aspect > 1 else sides


@functools.cache
def _cumulative(options: SceneOptions) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Concepts in order of rank, and the cumulative weights of the ranks."""
    ranked = tuple(sorted(options.pool, key=lambda name: stable_hash64("rank", name)))
    power = options.zipf_exponent if options.weights == "zipf" else 0.0
    return ranked, tuple(itertools.accumulate((r + 1) ** -power for r in range(len(ranked))))


def _concept(draw: Draw, options: SceneOptions) -> str:
    ranked, cumulative = _cumulative(options)
    return ranked[bisect.bisect_right(cumulative, draw.uniform(0, cumulative[-1]))]


def _beside(draw: Draw, options: SceneOptions, chosen: Sequence[str]) -> str:
    """Return a further concept; in a part or a crowd, a new one that fits, as long as there is one.

    With ``co_occurrence`` it may be a partner of one that is there.
    """
    if options.co_occurrence and chosen and draw.chance(options.co_occurrence):
        near = partners(draw.pick(chosen), options.pool)
        new = [n for n in near if n not in chosen and fits(options.part, n, chosen)]
        if new:
            return draw.pick(new)
    name = _concept(draw, options)
    if options.part == "all" and not options.crowd:
        return name
    for _ in range(500):
        if name not in chosen and fits(options.part, name, chosen):
            return name
        name = _concept(draw, options)
    return draw.pick(chosen) if chosen else name


@functools.cache
def partners(concept: str, pool: tuple[str, ...]) -> tuple[str, ...]:
    """Return the concepts that are drawn for the sake of this one: by hash, not symmetric."""
    others = [name for name in pool if name != concept]
    ranked = sorted(others, key=lambda name: stable_hash64("partner", concept, name))
    return tuple(ranked[:_PARTNERS])


def _choose(draw: Draw, options: SceneOptions, count: int) -> tuple[list[str], bool]:
    """Return the concept of every instance; whether the second one is to stand on the first."""
    pool = options.pool
    supports = [c for c in pool if CONCEPT[c].support]
    # What stands, and what it stands on, are one of a kind: "a cat on a car" stays true. So
    # further objects need a third concept.
    possible = bool(supports) and count >= 2 and len(set(pool)) >= min(count, 3)
    stands = draw.chance(options.on_share) and possible
    chosen: list[str] = []
    if stands:
        chosen.append(draw.pick(supports))
        other = _concept(draw, options)
        others = [
            c for c in _cumulative(options)[0] if c != chosen[0] and fits(options.part, c, chosen)
        ]
        chosen.append(other if other in others else draw.pick(others))
    while len(chosen) < count:
        repeatable = chosen[2:] if stands else chosen
        repeat = bool(repeatable) and draw.chance(options.repeat_share)
        name = draw.pick(repeatable) if repeat else _beside(draw, options, chosen)
        if not (stands and name in chosen[:2]):
            chosen.append(name)
    return chosen, stands


def _place(
    draw: Draw,
    options: SceneOptions,
    canvas: tuple[int, int],
    concepts: Sequence[str],
    stands: bool,
) -> tuple[SceneObject, ...]:
    """Give every concept a box; all of them inside the canvas and apart from one another."""
    steps = options.max_rotation // 3
    turns = [3 * draw.integer(-steps, steps) for _ in concepts]
    if stands:
        turns[:2] = [0, 0]
    least, covered = (0.8, (0.36, 0.46)) if options.crowd else (0.35, (0.12, 0.45))
    shares = [draw.uniform(least, 1) ** 2 for _ in concepts]
    area = draw.uniform(*covered) * canvas[0] * canvas[1] / sum(shares)
    limit = 0.85 * min(canvas)
    shapes = [
        _shape(name, turn, share * area, limit)
        for name, turn, share in zip(concepts, turns, shares, strict=True)
    ]
    boxes = _pack(draw, canvas, shapes, stands, tries=200 if options.crowd else 12)
    colors: dict[str, str | None] = {}
    for name in concepts:
        paint = CONCEPT[name].paint and draw.chance(options.color_share)
        colors.setdefault(name, draw.pick(tuple(PAINTS)) if paint else None)
    return tuple(
        SceneObject(
            concept=name,
            box=(
                round(box[0] / canvas[0], 5),
                round(box[1] / canvas[1], 5),
                round(box[2] / canvas[0], 5),
                round(box[3] / canvas[1], 5),
            ),
            rotation=turn,
            flip=draw.chance(0.5),
            color=colors[name],
        )
        for name, box, turn in zip(concepts, boxes, turns, strict=True)
    )


def _shape(name: str, turn: int, area: float, limit: float) -> tuple[float, float]:
    """Width and height in canvas pixels of a sprite drawn over this area."""
    left, top, right, bottom = extent(name, turn)
    scale = math.sqrt(area / ((right - left) * (bottom - top)))
    scale = min(scale, limit / max(right - left, bottom - top))
    return (right - left) * scale, (bottom - top) * scale


def _pack(
    draw: Draw,
    canvas: tuple[int, int],
    shapes: list[tuple[float, float]],
    stands: bool,
    tries: int,
) -> list[Box]:
    """Return a box in canvas pixels per shape; shapes shrink until they fit."""
    shrink = 1.0
    while True:
        scaled = [(w * shrink, h * shrink) for w, h in shapes]
        tower = _tower(draw, scaled, canvas) if stands else []
        units = [_union(tower)] if tower else []
        boxes = list(tower)
        for shape in scaled[len(tower) :]:
            box = _free_spot(draw, canvas, shape, units, tries)
            if box is None:
                break
            units.append(box)
            boxes.append(box)
        if len(boxes) == len(shapes) and (tower or not stands):
            return boxes
        shrink *= 0.88


def _tower(draw: Draw, shapes: list[tuple[float, float]], canvas: tuple[int, int]) -> list[Box]:
    """Return the boxes of shape 1 standing on shape 0; empty where they do not fit."""
    (w0, h0), (w1, h1) = shapes[:2]
    fit = min(1.0, 0.8 * w0 / w1)
    w1, h1 = w1 * fit, h1 * fit
    height = h0 * (1 - _SINK) + h1
    margin = _GAP * min(canvas)
    if w0 + 2 * margin > canvas[0] or height + 2 * margin > canvas[1]:
        return []
    left = draw.uniform(margin, canvas[0] - w0 - margin)
    top = draw.uniform(margin, canvas[1] - height - margin)
    left1 = left + draw.uniform(0.1, 0.9) * (w0 - w1)
    top0 = top + height - h0
    return [(left, top0, left + w0, top0 + h0), (left1, top, left1 + w1, top + h1)]


def _union(boxes: Sequence[Box]) -> Box:
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return min(lefts), min(tops), max(rights), max(bottoms)


def _free_spot(
    draw: Draw,
    canvas: tuple[int, int],
    shape: tuple[float, float],
    taken: Sequence[Box],
    tries: int,
) -> Box | None:
    width, height = shape
    gap = _GAP * min(canvas)
    room = canvas[0] - width - 2 * gap, canvas[1] - height - 2 * gap
    if min(room) < 0:
        return None
    for _ in range(tries):
        left, top = gap + draw.uniform(0, room[0]), gap + draw.uniform(0, room[1])
        right, bottom = left + width, top + height
        if all(
            right + gap < b[0] or b[2] + gap < left or bottom + gap < b[1] or b[3] + gap < top
            for b in taken
        ):
            return left, top, right, bottom
    return None


def _relations(
    objects: Sequence[SceneObject], width: int, height: int, stands: bool
) -> tuple[Relation, ...]:
    boxes: dict[str, list[Box]] = {}
    for thing in objects:
        x0, y0, x1, y1 = thing.box
        pixels = (x0 * width, y0 * height, x1 * width, y1 * height)
        boxes.setdefault(thing.concept, []).append(pixels)
    found = []
    names = list(boxes)
    for a, b in itertools.permutations(names, 2):
        pairs = list(itertools.product(boxes[a], boxes[b]))
        if stands and {a, b} == set(names[:2]):
            predicate: Predicate | None = "on" if a == names[1] else None
        else:
            words = {relation_of(p, q) for p, q in pairs}
            predicate = words.pop() if len(words) == 1 else None
        if predicate:
            found.append(Relation(subject=a, predicate=predicate, object=b))
    return tuple(found)


def relation_of(a: Box, b: Box) -> Predicate | None:
    """Return where ``a`` is, seen from ``b``; both in units that are equal in x and y.

    Left, right: apart in x, and the centres differ more in x than in y; above, below alike.
    """
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    if abs(dx) > abs(dy):
        return "left of" if a[2] <= b[0] else "right of" if b[2] <= a[0] else None
    return "above" if a[3] <= b[1] else "below" if b[3] <= a[1] else None

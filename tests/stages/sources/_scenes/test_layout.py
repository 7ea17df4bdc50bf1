"""Scene descriptions: the same everywhere, inside the canvas, apart, and truly related."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError
from winnow.stages.sources._scenes import CONCEPTS, Scene, SceneOptions, scene
from winnow.stages.sources._scenes.layout import partners
from winnow.stages.sources._scenes.model import ranked_concepts
from winnow.stages.sources._scenes.sprites import CONCEPT, extent

ANY = SceneOptions()
CROWD = SceneOptions(min_objects=5, max_objects=10, on_share=0.5, aspects=(0.3, 3.0))
OPTIONS = {
    "default": ANY,
    "square": SceneOptions(aspects=(1.0, 1.0), max_rotation=0),
    "crowd": CROWD,
    "towers": SceneOptions(min_objects=2, max_objects=3, on_share=1.0),
    "two concepts": SceneOptions(
        concepts=("car", "cat"), on_share=1.0, min_objects=2, max_objects=5
    ),
}


def pixel_boxes(drawn: Scene) -> list[tuple[float, float, float, float]]:
    return [
        (b[0] * drawn.width, b[1] * drawn.height, b[2] * drawn.width, b[3] * drawn.height)
        for b in (thing.box for thing in drawn.objects)
    ]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from(sorted(OPTIONS)))
def test_geometry(seed: int, index: int, name: str) -> None:
    options = OPTIONS[name]
    drawn = scene(seed, index, options)
    assert options.min_objects <= len(drawn.objects) <= options.max_objects
    assert min(drawn.width, drawn.height) >= options.sizes[0]
    lowest, highest = options.aspects
    assert lowest * 0.98 <= drawn.width / drawn.height <= highest * 1.02
    boxes = pixel_boxes(drawn)
    for thing, (x0, y0, x1, y1) in zip(drawn.objects, boxes, strict=True):
        assert 0 <= x0 < x1 <= drawn.width
        assert 0 <= y0 < y1 <= drawn.height
        left, top, right, bottom = extent(thing.concept, thing.rotation)
        assert (x1 - x0) / (y1 - y0) == pytest.approx((right - left) / (bottom - top), rel=0.03)
    standing = {(r.subject, r.object) for r in drawn.relations if r.predicate == "on"}
    for (a, p), (b, q) in itertools.combinations(zip(drawn.objects, boxes, strict=True), 2):
        overlap_x = min(p[2], q[2]) - max(p[0], q[0])
        overlap_y = min(p[3], q[3]) - max(p[1], q[1])
        if {(a.concept, b.concept), (b.concept, a.concept)} & standing:
            assert overlap_y <= 0.12 * max(p[3] - p[1], q[3] - q[1])
        else:
            assert overlap_x <= 0.01 * drawn.width or overlap_y <= 0.01 * drawn.height
            assert min(overlap_x, overlap_y) <= 0


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**40), st.sampled_from(sorted(OPTIONS)))
def test_relations_are_true_of_all_instances(index: int, name: str) -> None:
    drawn = scene(3, index, OPTIONS[name])
    where: dict[str, list[tuple[float, float, float, float]]] = {}
    for thing, box in zip(drawn.objects, pixel_boxes(drawn), strict=True):
        where.setdefault(thing.concept, []).append(box)
    assert len({(r.subject, r.object) for r in drawn.relations}) == len(drawn.relations)
    for r in drawn.relations:
        assert r.subject != r.object
        for a, b in itertools.product(where[r.subject], where[r.object]):
            true = {
                "left of": a[2] <= b[0],
                "right of": a[0] >= b[2],
                "above": a[3] <= b[1],
                "below": a[1] >= b[3],
                "on": b[1] <= a[3] <= b[1] + 0.12 * (b[3] - b[1]) and b[0] <= a[0] <= a[2] <= b[2],
            }
            assert true[r.predicate]
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    said = {(r.subject, r.predicate, r.object) for r in drawn.relations}
    for subject, predicate, thing in said - {s for s in said if s[1] == "on"}:
        assert (thing, opposite[predicate], subject) in said


def test_what_stands_stands_on_a_support_alone() -> None:
    found = 0
    for index in range(200):
        drawn = scene(5, index, OPTIONS["towers"])
        counts = Counter(thing.concept for thing in drawn.objects)
        for r in drawn.relations:
            if r.predicate == "on":
                found += 1
                assert CONCEPT[r.object].support
                assert counts[r.subject] == counts[r.object] == 1
    assert found == 200


def test_groups_count_and_share_a_color() -> None:
    repeated = 0
    for index in range(300):
        drawn = scene(6, index, SceneOptions(repeat_share=0.7))
        groups = drawn.groups
        assert sum(g.count for g in groups) == len(drawn.objects)
        assert [g.concept for g in groups] == list(dict.fromkeys(t.concept for t in drawn.objects))
        for group in groups:
            things = [t for t in drawn.objects if t.concept == group.concept]
            assert {t.color for t in things} == {group.color}
            assert group.color is None or CONCEPT[group.concept].paint
            repeated += group.count > 1
    assert repeated > 100


def test_size_words_follow_the_boxes() -> None:
    words = Counter()
    for index in range(300):
        drawn = scene(7, index, ANY)
        (group, *rest) = drawn.groups
        if rest or group.count > 1:
            continue
        (x0, y0, x1, y1) = pixel_boxes(drawn)[0]
        side = ((x1 - x0) * (y1 - y0)) ** 0.5 / min(drawn.width, drawn.height)
        assert group.size == ("small" if side < 0.2 else "large" if side > 0.5 else None)
        words[group.size] += 1
    assert words["large"] and words[None]


def test_the_same_in_another_process() -> None:
    program = (
        "from winnow.stages.sources._scenes import *;"
        "print([scene(11, i, SceneOptions(max_objects=6)) for i in range(20)])"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            check=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert outputs == {str([scene(11, i, SceneOptions(max_objects=6)) for i in range(20)])}


def test_a_known_scene_stays_what_it_is() -> None:
    """Bump the source's version when this changes: uids and captions change with it."""
    drawn = scene(1, 3, ANY)
    assert (drawn.width, drawn.height) == (340, 344)
    assert [(t.concept, t.rotation, t.flip, t.color) for t in drawn.objects] == [
        ("trophy", -6, False, None)
    ]
    assert drawn.background.id == "gradient:white:red"


def test_options_and_seed_make_other_scenes() -> None:
    def first(seed: int, options: SceneOptions) -> tuple[object, ...]:
        return tuple(scene(seed, i, options).objects for i in range(10))

    assert first(1, ANY) == first(1, SceneOptions())
    assert first(1, ANY) != first(2, ANY)
    assert first(1, ANY) != first(1, SceneOptions(max_objects=5))


def test_every_concept_comes_and_uniform_is_even() -> None:
    counts = Counter(t.concept for i in range(6000) for t in scene(8, i, ANY).objects)
    assert set(counts) == set(CONCEPTS)
    plain = [counts[name] for name in CONCEPTS if not CONCEPT[name].support]
    mean = sum(plain) / len(plain)
    assert max(plain) < 2 * mean
    assert min(plain) > 0.4 * mean


def test_zipf_weights_fall_with_rank() -> None:
    options = SceneOptions(weights="zipf", on_share=0.0, repeat_share=0.0)
    counts = Counter(t.concept for i in range(6000) for t in scene(8, i, options).objects)
    total = sum(counts.values())
    ordered = [count for _, count in counts.most_common()]
    harmonic = sum(1 / r for r in range(1, len(CONCEPTS) + 1))
    assert ordered[0] / total == pytest.approx(1 / harmonic, rel=0.1)
    assert ordered[0] / ordered[9] == pytest.approx(10, rel=0.35)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"min_objects": 0}, "objects=0..4"),
        ({"min_objects": 5}, "objects=5..4"),
        ({"max_objects": 99}, "objects=1..99"),
        ({"sizes": (4, 512)}, r"sizes=\(4, 512\)"),
        ({"aspects": (2.0, 1.0)}, r"aspects=\(2.0, 1.0\)"),
        ({"concepts": ("cat", "katze")}, "unknown concepts.*katze"),
        ({"backgrounds": ()}, "no background"),
    ],
)
def test_bad_options_say_what_is_allowed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        SceneOptions(**changes)  # type: ignore[arg-type]


def test_a_smaller_world_is_made_of_the_first_concepts() -> None:
    wanted = set(ranked_concepts()[:80])
    for part in ("train", "validation", "test"):
        options = SceneOptions(part=part, num_concepts=80)
        scenes = [scene(3, index, options) for index in range(200)]
        assert {o.concept for s in scenes for o in s.objects} <= wanted
        assert max(len(s.groups) for s in scenes) == 4
    larger = ranked_concepts()[:81]
    assert set(larger) > wanted


def test_a_world_too_small_for_held_out_pairs_is_refused() -> None:
    with pytest.raises(RecipeError, match="num_concepts=79; use 80 to "):
        SceneOptions(part="test", num_concepts=79)
    with pytest.raises(RecipeError, match="num_concepts=0; use 1 to "):
        SceneOptions(num_concepts=0)
    assert SceneOptions(num_concepts=1).pool == ranked_concepts()[:1]


CROWDS = SceneOptions(
    min_objects=6, max_objects=10, sizes=(128, 128), aspects=(1.0, 1.0), weights="zipf",
    num_concepts=80, crowd=True, repeat_share=0.0, on_share=0.0,
)  # fmt: skip


def test_a_crowd_has_different_things_that_are_large_enough_to_see() -> None:
    for index in range(150):
        drawn = scene(9, index, CROWDS)
        assert 6 <= len(drawn.groups) == len(drawn.objects) <= 10
        sides = [drawn.side(thing.box) * 112 for thing in drawn.objects]
        assert min(sides) > 13  # pixels, in a picture of 112


def test_co_occurrence_plants_pairs() -> None:
    planted = SceneOptions(
        min_objects=6, max_objects=6, num_concepts=80, crowd=True, co_occurrence=0.7
    )

    def share(options: SceneOptions) -> float:
        """Of objects whose partner is another of the scene, per pair that could be one."""
        pool, hits, tries = options.pool, 0, 0
        for index in range(200):
            here = {t.concept for t in scene(10, index, options).objects}
            tries += len(here) * 3
            hits += sum(len(here.intersection(partners(c, pool))) for c in here)
        return hits / tries

    assert share(planted) > 4 * share(replace(planted, co_occurrence=0.0))
    assert len(partners("cat", planted.pool)) == 3
    assert "cat" not in partners("cat", ("cat", "dog"))


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_bad_co_occurrence_is_refused(value: float) -> None:
    with pytest.raises(RecipeError, match="use a chance from 0 to 1"):
        SceneOptions(co_occurrence=value)

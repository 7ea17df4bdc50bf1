"""Parts: disjoint in pairs, stated roles, backgrounds and templates; alike in everything else."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from winnow.contracts.errors import RecipeError
from winnow.stages.sources._scenes import CONCEPTS, Scene, SceneOptions, scene
from winnow.stages.sources._scenes.captions import TEMPLATES, Statement, num_variants, state
from winnow.stages.sources._scenes.holdout import (
    EVALUATION,
    INVERSE,
    background_part,
    backgrounds,
    pair_part,
    role_part,
    second_colors,
)
from winnow.stages.sources._scenes.model import BACKGROUND_COLORS, PATTERNS, Part
from winnow.stages.sources._scenes.sprites import CONCEPT

PARTS: tuple[Part, ...] = ("train", "validation", "test")
NUMBER = 2500
SCENES: dict[Part, list[Scene]] = {
    part: [scene(3, i, SceneOptions(part=part, aspects=(1.0, 1.0))) for i in range(NUMBER)]
    for part in PARTS
}
SAID: dict[Part, list[Statement]] = {
    part: [state(s, i, part) for i, s in enumerate(SCENES[part])] for part in PARTS
}


def pairs(drawn: Scene) -> set[frozenset[str]]:
    return {frozenset(p) for p in itertools.combinations({t.concept for t in drawn.objects}, 2)}


def roles(said: Statement) -> set[tuple[str, str]]:
    """Both sides of what is said: "a cat left of a dog" is also "a dog right of a cat"."""
    if said.relation is None:
        return set()
    r = said.relation
    return {(r.subject, r.predicate), (r.object, INVERSE[r.predicate])}


def frame(template: str) -> tuple[str, ...]:
    """The words around the slots: which slot holds the objects makes no other template."""
    slots = re.sub(r"\{(objects|relation|names)\}", "{}", template)
    return tuple(re.findall(r"[a-z]+|\{\}|\{background\}", slots.lower()))


def test_every_pair_has_one_part_and_the_shares_are_as_documented() -> None:
    counts = Counter(pair_part(a, b) for a, b in itertools.combinations(CONCEPTS, 2))
    total = sum(counts.values())
    assert set(counts) == set(PARTS)
    assert counts["train"] / total == pytest.approx(0.81, abs=0.02)
    assert counts["validation"] / total == pytest.approx(0.10, abs=0.02)
    assert counts["test"] / total == pytest.approx(0.09, abs=0.02)
    assert all(pair_part(a, b) == pair_part(b, a) for a, b in itertools.pairwise(CONCEPTS))


def test_scenes_hold_pairs_of_their_part_only() -> None:
    seen = {part: set().union(*map(pairs, SCENES[part])) for part in PARTS}
    for part in PARTS:
        assert len(seen[part]) > 1000
        assert {pair_part(*pair) for pair in seen[part]} == {part}
    for a, b in itertools.combinations(PARTS, 2):
        assert seen[a].isdisjoint(seen[b])


def test_captions_say_roles_of_other_parts_never() -> None:
    seen = {part: set().union(*map(roles, SAID[part])) for part in PARTS}
    assert not {role for role in seen["train"] if role_part(*role) != "all"}
    assert {role_part(*role) for role in seen["validation"]} == {"all", "validation"}
    assert {role_part(*role) for role in seen["test"]} == {"all", "test"}
    shown = {
        (r.subject, r.predicate) for s in SCENES["train"] for r in s.relations
    }  # pictures may show them
    assert {role_part(*role) for role in shown} == {"all", "validation", "test"}
    words = {part: {s.relation.predicate for s in SAID[part] if s.relation} for part in PARTS}
    assert all(words[part] == set(INVERSE) for part in PARTS)


def test_backgrounds_are_divided() -> None:
    seen = {
        part: {(s.background.pattern, s.background.color) for s in SCENES[part]} for part in PARTS
    }
    assert sum(len(found) for found in seen.values()) == len(PATTERNS) * len(BACKGROUND_COLORS)
    for a, b in itertools.combinations(PARTS, 2):
        assert seen[a].isdisjoint(seen[b])
    for part in EVALUATION:
        assert len(seen[part]) == len(PATTERNS)
        assert len({color for _, color in seen[part]}) == len(PATTERNS)
    assert {pattern for pattern, _ in seen["train"]} == set(PATTERNS)
    assert {color for _, color in seen["train"]} == set(BACKGROUND_COLORS)
    for part in PARTS:
        for s in SCENES[part]:
            other = background_part(s.background.pattern, s.background.color2)
            assert other in ("train", part)
            assert s.background.color2 != s.background.color


def test_every_background_of_a_part_has_several_second_colors() -> None:
    for part in PARTS:
        for pattern, color in backgrounds(part, PATTERNS):
            assert len(second_colors(part, pattern, color)) >= 7


def test_no_template_is_in_two_parts_and_no_word_is_new() -> None:
    frames = {part: {frame(t) for t in TEMPLATES[part]} for part in PARTS}
    for a, b in itertools.combinations(PARTS, 2):
        assert frames[a].isdisjoint(frames[b])
    known = {word for words in frames["train"] for word in words}
    for part in EVALUATION:
        assert {word for words in frames[part] for word in words} <= known
    for part in PARTS:
        assert {frame(s.template) for s in SAID[part]} == frames[part]


def test_templates_for_a_relation_have_one_in_evaluation() -> None:
    for part in EVALUATION:
        assert all(s.relation for s in SAID[part] if "{relation}" in s.template)
        assert all(s.sizes and s.counts for s in SAID[part])


def test_every_concept_is_in_every_part() -> None:
    for part in PARTS:
        seen = Counter(t.concept for s in SCENES[part] for t in s.objects)
        assert set(seen) == set(CONCEPTS)


def test_parts_are_alike_in_numbers_repeats_and_paint() -> None:
    def share(part: Part, number: int) -> float:
        return sum(len(s.groups) == number for s in SCENES[part]) / NUMBER

    for part in PARTS:
        objects = Counter(len(s.objects) for s in SCENES[part])
        assert all(objects[n] / NUMBER == pytest.approx(0.25, abs=0.04) for n in (1, 2, 3, 4))
        for number in (1, 2, 3, 4):
            assert share(part, number) == pytest.approx(share("train", number), abs=0.05)
        painted = sum(any(g.color for g in s.groups) for s in SCENES[part]) / NUMBER
        related = sum(bool(s.relations) for s in SCENES[part]) / NUMBER
        assert painted == pytest.approx(0.14, abs=0.04)
        assert related == pytest.approx(0.62, abs=0.06)


@pytest.mark.parametrize("part", PARTS)
def test_any_three_things_can_be_found_to_stand_and_crowds_end(part: Part) -> None:
    towers = SceneOptions(part=part, min_objects=3, max_objects=3, on_share=1.0)
    crowd = SceneOptions(part=part, min_objects=16, max_objects=16, on_share=0.5)
    for index in range(150):
        assert len(scene(1, index, towers).groups) == 3
    for index in range(15):
        drawn = scene(1, index, crowd)
        assert len(drawn.objects) == 16
        assert {pair_part(*pair) for pair in pairs(drawn)} == {part}


@pytest.mark.parametrize("part", EVALUATION)
def test_whatever_stands_on_a_support_there_is_a_third_thing(part: Part) -> None:
    supports = [name for name in CONCEPTS if CONCEPT[name].support]
    beside = {a: {b for b in CONCEPTS if b != a and pair_part(a, b) == part} for a in CONCEPTS}
    for support in supports:
        assert beside[support]
        assert all(beside[support] & beside[other] for other in beside[support])


def test_variants_are_those_of_the_part() -> None:
    assert [num_variants("en", part) for part in PARTS] == [len(TEMPLATES[p]) for p in PARTS]
    assert num_variants() == num_variants("en", "train") == 12
    drawn = SCENES["test"][0]
    assert state(drawn, 1, "test") == state(drawn, 1 + num_variants("en", "test"), "test")


def test_a_part_draws_from_all_concepts() -> None:
    with pytest.raises(RecipeError, match=r"part='test' draws from all concepts"):
        SceneOptions(part="test", concepts=("cat", "dog"))

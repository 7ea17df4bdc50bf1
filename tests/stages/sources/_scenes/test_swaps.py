"""False captions: read back word by word and compared with the boxes of the scene."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import pytest

from winnow.stages.sources._scenes import CONCEPTS, Scene, SceneOptions, scene
from winnow.stages.sources._scenes.captions import article, state
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.holdout import INVERSE, pair_part, role_part
from winnow.stages.sources._scenes.model import LARGE, SMALL, Part
from winnow.stages.sources._scenes.sprites import CONCEPT, PAINTS
from winnow.stages.sources._scenes.swaps import Swaps, holds, swaps

NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
FORMS = {CONCEPT[c].name: c for c in CONCEPTS} | {CONCEPT[c].plural: c for c in CONCEPTS}
NOUN = "|".join(sorted(map(re.escape, FORMS), key=len, reverse=True))
PHRASE = re.compile(
    rf"\b({'|'.join(NUMBERS)}) (small |large )?(?:({'|'.join(PAINTS)}) )?({NOUN})\b"
)
PREDICATES = ("to the left of", "to the right of", "above", "below", "on top of")
RELATION = re.compile(rf"\b({NOUN}) ({'|'.join(PREDICATES)}) (?:[a-z]+ )*?({NOUN})\b")
FIELDS = ("attribute", "relation", "count")
PARTS: tuple[Part, ...] = ("all", "train", "validation", "test")


class Claim(NamedTuple):
    count: int
    size: str
    color: str
    concept: str


class Case(NamedTuple):
    drawn: Scene
    text: str
    said_counts: bool
    false: Swaps


def cases(part: Part, number: int = 500) -> list[Case]:
    found = []
    for index in range(number):
        options = SceneOptions(part=part, aspects=(0.8, 1.25), color_share=0.9)
        drawn = scene(5, index, options)
        said = state(drawn, index, part)
        false = swaps(said, drawn, part, Draw("test", index))
        found.append(Case(drawn, said.text, said.counts, false))
    return found


CASES = {part: cases(part) for part in PARTS}


def claims(text: str) -> list[Claim]:
    return [
        Claim(NUMBERS[n], size.strip(), color, FORMS[noun])
        for n, size, color, noun in PHRASE.findall(text)
    ]


def relation_in(text: str) -> tuple[str, str, str] | None:
    found = RELATION.findall(text)
    return (FORMS[found[0][0]], found[0][1], FORMS[found[0][2]]) if found else None


def sides_of(concept: str, drawn: Scene) -> list[float]:
    """Square root of each box's area, in units of the shorter side."""
    return [
        math.sqrt((b[2] - b[0]) * drawn.width * (b[3] - b[1]) * drawn.height)
        / min(drawn.width, drawn.height)
        for b in (t.box for t in drawn.objects if t.concept == concept)
    ]


def claim_holds(claim: Claim, drawn: Scene) -> bool:
    things = [t for t in drawn.objects if t.concept == claim.concept]
    sides = sides_of(claim.concept, drawn)
    of_size = {"": True, "small": max(sides, default=1) < SMALL}
    of_size["large"] = min(sides, default=0) > LARGE
    colors = {t.color for t in things}
    return (
        len(things) == claim.count
        and of_size[claim.size]
        and (not claim.color or colors == {claim.color})
    )


def relation_holds(relation: tuple[str, str, str], drawn: Scene) -> bool:
    """By the centres of the boxes, in pixels: not the rule that the scenes were made with."""
    subject, words, thing = relation
    boxes = {
        name: [
            (t.box[0] + t.box[2], (t.box[1] + t.box[3]) * drawn.height / drawn.width)
            for t in drawn.objects
            if t.concept == name
        ]
        for name in (subject, thing)
    }
    return all(
        {
            "to the left of": a[0] < b[0],
            "to the right of": a[0] > b[0],
            "above": a[1] < b[1],
            "below": a[1] > b[1],
            "on top of": a[1] < b[1],
        }[words]
        for a, b in itertools.product(boxes[subject], boxes[thing])
    )


@pytest.mark.parametrize("part", PARTS)
def test_the_caption_is_true_and_each_swap_is_false(part: Part) -> None:
    checked = Counter()
    for case in CASES[part]:
        relation = relation_in(case.text)
        assert all(claim_holds(claim, case.drawn) for claim in claims(case.text)), case.text
        assert relation is None or relation_holds(relation, case.drawn), case.text
        for name in FIELDS:
            text = getattr(case.false, name)
            if text is None:
                continue
            checked[name] += 1
            said = relation_in(text)
            wrong = [claim for claim in claims(text) if not claim_holds(claim, case.drawn)]
            if name == "relation":
                assert not wrong, text
                assert said is not None
                assert not relation_holds(said, case.drawn), text
                assert sorted(claims(text)) == sorted(claims(case.text))
            else:
                assert wrong, f"{case.text} -> {text}"
                assert said == relation
    assert all(checked[name] > 40 for name in FIELDS)


@pytest.mark.parametrize("part", PARTS)
def test_one_fact_is_swapped_and_nothing_else(part: Part) -> None:
    kinds = Counter()
    for case in CASES[part]:
        true = claims(case.text)
        if case.false.count:
            changed = [
                (a, b) for a, b in zip(true, claims(case.false.count), strict=True) if a != b
            ]
            ((a, b),) = changed
            assert a._replace(count=b.count) == b
            assert abs(a.count - b.count) == 1
            kinds["up" if b.count > a.count else "down"] += 1
        if case.false.attribute:
            changed = [
                (a, b) for a, b in zip(true, claims(case.false.attribute), strict=True) if a != b
            ]
            for a, b in changed:
                assert (a.count, a.concept) == (b.count, b.concept)
                assert (a.size == b.size) != (a.color == b.color)
            kinds[len(changed), changed[0][0].size == changed[0][1].size] += 1
        if case.false.relation:
            before, after = relation_in(case.text), relation_in(case.false.relation)
            exchanged = before and (before[2], before[1], before[0]) == after
            kinds["exchanged" if exchanged else "inverted"] += 1
            assert exchanged or before[::2] == after[::2]
    # colors and sizes, exchanged (two things change) and replaced
    assert {(2, True), (2, False), (1, True), (1, False)} <= set(kinds)
    assert min(kinds["exchanged"], kinds["inverted"]) > 10
    assert 0.5 < kinds["up"] / kinds["down"] < 2  # so that "more is false" is no rule to learn


@pytest.mark.parametrize("part", PARTS)
def test_false_attributes_are_plainly_false(part: Part) -> None:
    checked = Counter()
    for case in CASES[part]:
        pairs = zip(claims(case.text), claims(case.false.attribute or case.text), strict=True)
        for true, false in pairs:
            if false.size != true.size and false.size == "small":
                assert min(sides_of(true.concept, case.drawn)) >= SMALL + 0.09
            if false.size != true.size and false.size == "large":
                assert max(sides_of(true.concept, case.drawn)) <= LARGE - 0.09
            if false.color != true.color:
                assert math.dist(PAINTS[true.color], PAINTS[false.color]) >= 120
            checked[false.size != true.size, false.color != true.color] += 1
    assert min(checked[True, False], checked[False, True]) > 40


@pytest.mark.parametrize("part", PARTS)
def test_swaps_keep_the_template_and_the_grammar(part: Part) -> None:
    nouns = re.compile(rf"\b(?:{'|'.join(NUMBERS)}) (?:[a-z]+ )?(?:[a-z]+ )?(?:{NOUN})\b")
    for case in CASES[part]:
        texts = (*(getattr(case.false, n) for n in FIELDS), case.false.hard_negative)
        for text in filter(None, texts):
            assert text != case.text
            if case.said_counts and text != case.false.relation:
                assert nouns.sub("X", text) == nouns.sub("X", case.text)
            for number, size, color, noun in PHRASE.findall(text):
                assert noun in ((CONCEPT[FORMS[noun]].name,) if number in ("a", "an") else FORMS)
                if number in ("a", "an"):
                    assert article(f"{size}{color or noun}") == number
                else:
                    assert noun == CONCEPT[FORMS[noun]].plural


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_quarter_of_the_evaluation_rows_have_each_swap(part: Part) -> None:
    for name in FIELDS:
        share = sum(getattr(case.false, name) is not None for case in CASES[part]) / 500
        assert share >= 0.25, name


@pytest.mark.parametrize("part", PARTS)
def test_a_hard_negative_is_one_of_the_swaps_or_names_another_thing(part: Part) -> None:
    kinds = Counter()
    for case in CASES[part]:
        text = case.false.hard_negative
        assert text is not None
        kind = next((n for n in FIELDS if getattr(case.false, n) == text), "thing")
        kinds[kind] += 1
        if kind == "thing":
            here = {t.concept for t in case.drawn.objects}
            named = {FORMS[n] for n in re.findall(rf"\b({NOUN})\b", text)}
            assert len(named - here) == len(here - named) == 1
    assert set(kinds) == {*FIELDS, "thing"}


def test_what_a_part_holds_out_is_not_said_falsely_either() -> None:
    for part in ("train", "validation", "test"):
        for case in CASES[part]:
            for text in filter(None, (case.false.relation, case.false.hard_negative)):
                named = {FORMS[n] for n in re.findall(rf"\b({NOUN})\b", text)}
                assert all(pair_part(a, b) == part for a, b in itertools.combinations(named, 2))
                found = relation_in(text)
                if found:
                    word = {"on top of": "on"}.get(found[1], found[1].removeprefix("to the "))
                    for role in ((found[0], word), (found[2], INVERSE[word])):
                        assert role_part(*role) in ("all", part)


def test_holds_sees_each_kind_of_mistake() -> None:
    drawn = next(
        s
        for s in (scene(9, i, SceneOptions(color_share=1.0)) for i in range(500))
        if s.relations and s.groups[0].color and s.groups[1].size
    )
    said = replace(state(drawn, 2), sizes=True)
    first, second, *rest = said.groups
    assert holds(said, drawn)
    assert not holds(replace(said, groups=(replace(first, color="none"), second, *rest)), drawn)
    assert not holds(replace(said, groups=(replace(first, count=9), second, *rest)), drawn)
    other = {"small": "large", "large": "small"}[second.size or ""]
    assert not holds(replace(said, groups=(first, replace(second, size=other), *rest)), drawn)  # type: ignore[arg-type]
    assert holds(
        replace(said, sizes=False, groups=(first, replace(second, size=other), *rest)),  # type: ignore[arg-type]
        drawn,
    )
    assert not holds(replace(said, groups=(first, *rest)), drawn)
    relation = said.relation
    assert relation is not None
    turned = replace(relation, subject=relation.object, object=relation.subject)
    assert not holds(replace(said, relation=turned), drawn)


def test_the_same_every_time_and_another_draw_is_another_choice() -> None:
    drawn, said = CASES["test"][3].drawn, state(CASES["test"][3].drawn, 3, "test")
    assert swaps(said, drawn, "test", Draw("test", 3)) == CASES["test"][3].false
    others = {swaps(said, drawn, "test", Draw("test", i)).hard_negative for i in range(50)}
    assert len(others) > 3

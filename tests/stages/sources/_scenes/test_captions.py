"""Captions: they name exactly what is there, count it, and relate it truly."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from winnow.stages.sources._scenes import (
    LANGUAGES,
    Scene,
    SceneOptions,
    caption,
    num_variants,
    scene,
)
from winnow.stages.sources._scenes.captions import article, background_phrase, noun_phrase
from winnow.stages.sources._scenes.model import Background, Group
from winnow.stages.sources._scenes.sprites import CONCEPT, CONCEPTS, PAINTS, name_in

OPTIONS = SceneOptions(max_objects=6, repeat_share=0.4)
NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
FORMS = {CONCEPT[c].name: c for c in CONCEPTS} | {CONCEPT[c].plural: c for c in CONCEPTS}
# Longest first, so that "hot dog" is no dog.
NOUN = "|".join(sorted(map(re.escape, FORMS), key=len, reverse=True))
PHRASE = re.compile(
    rf"\b({'|'.join(NUMBERS)}) (?:small |large )?(?:({'|'.join(PAINTS)}) )?({NOUN})\b"
)
NAMES_ONLY = 8


def scenes(number: int = 120) -> list[Scene]:
    return [scene(21, index, OPTIONS) for index in range(number)]


@pytest.mark.parametrize("variant", [v for v in range(num_variants()) if v != NAMES_ONLY])
def test_english_names_every_object_with_its_count_and_color(variant: int) -> None:
    for drawn in scenes():
        text = caption(drawn, variant=variant).replace("This image", "this image")
        said = Counter()
        for number, color, noun in PHRASE.findall(text):
            said[FORMS[noun], color or None] += NUMBERS[number]
        assert said == Counter({(g.concept, g.color): g.count for g in drawn.groups}), text


def test_names_only() -> None:
    for drawn in scenes():
        nouns = caption(drawn, variant=NAMES_ONLY).split(", ")
        assert [FORMS[noun] for noun in nouns] == [g.concept for g in drawn.groups]


def test_nothing_else_is_named() -> None:
    nouns = re.compile(rf"\b({NOUN})\b")
    for drawn in scenes():
        here = {g.concept for g in drawn.groups}
        for variant in range(num_variants()):
            text = caption(drawn, variant=variant)
            assert {FORMS[noun] for noun in nouns.findall(text)} == here, text


def test_relations_that_are_said_are_there() -> None:
    words = {
        "to the left of": "left of",
        "to the right of": "right of",
        "above": "above",
        "below": "below",
        "on top of": "on",
    }
    pattern = re.compile(rf"({NOUN}) ({'|'.join(words)}) (?:\w+ )*?({NOUN})\b")
    found = Counter()
    for drawn in [scene(22, i, SceneOptions(min_objects=2, on_share=0.4)) for i in range(300)]:
        known = {(r.subject, r.predicate, r.object) for r in drawn.relations}
        for variant in (2, 6, 10):
            said = pattern.findall(caption(drawn, variant=variant))
            assert len(said) == bool(known)
            for subject, predicate, thing in said:
                assert (FORMS[subject], words[predicate], FORMS[thing]) in known
                found[predicate] += 1
    assert all(found[word] > 20 for word in words)


def test_at_least_eight_varied_templates() -> None:
    drawn = next(s for s in scenes() if s.relations)
    assert num_variants() >= 8
    assert len({caption(drawn, variant=v) for v in range(num_variants())}) == num_variants()
    assert caption(drawn, variant=num_variants() + 1) == caption(drawn, variant=1)


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != "en"])
def test_other_languages_list_the_names(language: str) -> None:
    for drawn in scenes(40):
        for variant in range(num_variants(language)):
            text = caption(drawn, language, variant)
            rest = text
            for group in sorted(drawn.groups, key=lambda g: -len(name_in(language, g.concept))):
                name = name_in(language, group.concept)
                name += f" ({group.count})" if group.count > 1 else ""
                assert name in rest, text
                rest = rest.replace(name, "", 1)
            assert not re.search(r"[0-9{}]", rest)
        assert caption(drawn, language, 0) in caption(drawn, language, 1)
        assert len(caption(drawn, language, 1)) > len(caption(drawn, language, 0))


def test_phrases() -> None:
    group = Group(concept="car", count=1, color="orange", size="small")
    assert noun_phrase(group) == "a small orange car"
    assert noun_phrase(group, with_size=False) == "an orange car"
    assert noun_phrase(Group(concept="wolf", count=3, color=None, size=None)) == "three wolves"
    words = ("unicorn", "hourglass", "house", "umbrella", "apple", "yo-yo")
    assert [article(w) for w in words] == ["a", "an", "a", "an", "an", "a"]
    background = Background(pattern="gradient", color="red", color2="white", texture=1)
    assert background_phrase(background) == "a background that fades from red to white"
    solid = Background(pattern="solid", color="orange", color2="white", texture=1)
    assert background_phrase(solid) == "an orange background"

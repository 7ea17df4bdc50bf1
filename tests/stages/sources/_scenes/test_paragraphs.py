"""Paragraphs: every group once, in any order, with true counts, colors and relations."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from winnow.stages.sources._scenes import Scene, SceneOptions, scene
from winnow.stages.sources._scenes.captions import PREDICATE_WORDS, noun_phrase
from winnow.stages.sources._scenes.draw import Draw
from winnow.stages.sources._scenes.paragraphs import Paragraph, paragraph
from winnow.stages.sources._scenes.sprites import CONCEPT

OPTIONS = SceneOptions(
    min_objects=6, max_objects=10, sizes=(128, 128), aspects=(1.0, 1.0), weights="zipf",
    num_concepts=80, crowd=True, co_occurrence=0.5, repeat_share=0.2,
)  # fmt: skip


def told(index: int) -> tuple[Scene, Paragraph]:
    drawn = scene(3, index, OPTIONS)
    return drawn, paragraph(drawn, Draw("told", index))


def test_every_group_is_introduced_once_with_its_count_and_color() -> None:
    for index in range(100):
        drawn, said = told(index)
        assert Counter(said.groups) == Counter(drawn.groups)
        introduced = [
            s for s in said.text.split(". ") if not re.match(r"(The (?!picture shows)|All of)", s)
        ]
        assert len(introduced) == len(drawn.groups)
        for group, sentence in zip(said.groups, introduced, strict=True):
            assert noun_phrase(group, with_size=False).lower() in sentence.lower()
            plural = group.count > 1
            assert not re.search(r"\bis\b" if plural else r"\bare\b", sentence)


def test_relations_are_true_and_of_what_was_named_before() -> None:
    found: Counter[str] = Counter()
    for index in range(100):
        drawn, said = told(index)
        order = [g.concept for g in said.groups]
        for relation in said.relations:
            assert relation in drawn.relations
            assert order.index(relation.object) < order.index(relation.subject)
            words = PREDICATE_WORDS[relation.predicate]
            subject, thing = CONCEPT[relation.subject], CONCEPT[relation.object]
            names = f"The ({subject.name}|{subject.plural}) (is|are) {words}"
            assert re.search(rf"{names} the ({thing.name}|{thing.plural})\.", said.text)
            found[relation.predicate] += 1
    assert all(found[word] > 10 for word in ("left of", "right of", "above", "below"))


def test_order_is_random_and_the_draw_decides() -> None:
    drawn, said = told(1)
    assert paragraph(drawn, Draw("told", 1)) == said
    firsts = Counter(paragraph(drawn, Draw("x", i)).groups[0].concept for i in range(400))
    assert set(firsts) == {g.concept for g in drawn.groups}
    share = 1 / len(drawn.groups)
    for count in firsts.values():
        assert count / 400 == pytest.approx(share, abs=4 * (share / 400) ** 0.5)

"""Sentences: long enough, many, and each in one part."""

from __future__ import annotations

import re

import pytest

from winnow.contracts.stage import WorkerOptions
from winnow.stages.language import Identifier, Language, identify
from winnow.stages.sources._speech.foreign import FOREIGN
from winnow.stages.sources._speech.sentences import (
    LANGUAGES,
    sentence,
    sentence_part,
    voice_language,
)
from winnow.stages.sources._speech.voice import languages, synthesise

ENGLISH = [sentence(7, i) for i in range(3000)]


@pytest.fixture(scope="module")
def identifier() -> Identifier:
    return Language().setup(WorkerOptions())


def test_many_different_words_and_sentences() -> None:
    words = {word for text in ENGLISH for word in re.findall("[a-z]+", text.lower())}
    assert len(words) > 400
    assert len(set(ENGLISH)) > 0.999 * len(ENGLISH)
    assert min(len(text.split()) for text in ENGLISH) >= 12
    assert all(text[0].isupper() and text.endswith(".") and text.isascii() for text in ENGLISH)


def test_a_sentence_lasts_three_seconds() -> None:
    shortest = sorted(ENGLISH, key=len)[:5]
    for text in shortest:
        samples, rate = synthesise(text, speed=185, variant="m1")
        assert len(samples) / rate >= 3.0, text


def test_short_ones() -> None:
    lengths = {len(sentence(1, i, short=True).split()) for i in range(200)}
    assert lengths <= {4, 5, 6, 7}


def test_no_sentence_is_in_two_parts() -> None:
    said = {
        part: {sentence(seed, i, part=part) for seed in (1, 2) for i in range(300)}
        for part in ("train", "validation", "test")
    }
    assert not said["train"] & said["validation"]
    assert not said["train"] & said["test"]
    assert not said["validation"] & said["test"]
    assert all(sentence_part(text) == part for part, texts in said.items() for text in texts)


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_foreign_sentences(language: str, identifier: Identifier) -> None:
    texts = {sentence(1, i, language=language, part="test") for i in range(60)}
    assert len(texts) > 40
    assert all(sentence_part(text) == "test" for text in texts)
    assert voice_language(language) in languages()
    assert {identify(text, identifier)[0] for text in texts} == {language}
    assert [len(set(column)) for column in FOREIGN[language]] == [8, 8, 8, 6]


def test_the_same_fields_say_the_same() -> None:
    assert sentence(7, 5) == ENGLISH[5]
    assert sentence(8, 5) != ENGLISH[5]

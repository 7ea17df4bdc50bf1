"""Names in texts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from winnow.contracts.errors import SetupError
from winnow.stages._objects import (
    Vocabulary,
    number_of,
    object_lists,
    read_synonyms,
    with_article,
    words_of,
)
from winnow.stages.sources._scenes.captions import article
from winnow.stages.sources._scenes.sprites import CONCEPT, CONCEPTS


def named(text: str, *names: str, **synonyms: str) -> list[str]:
    return [m.name for m in Vocabulary(names, synonyms).mentions(text)]


def test_all_concepts_of_the_scenes_are_found_alone_and_in_the_plural() -> None:
    vocabulary = Vocabulary(CONCEPTS)
    for name, concept in CONCEPT.items():
        text = f"Here {with_article(name)}; there, two {concept.plural.upper()}!"
        assert [m.name for m in vocabulary.mentions(text)] == [name, name], text


def test_the_longest_name_wins_and_no_word_counts_twice() -> None:
    names = ("dog", "hot dog", "slice of pizza", "pizza")
    assert named("hot dogs, a dog, slices of pizza, pizzas", *names) == [
        "hot dog", "dog", "slice of pizza", "pizza",
    ]  # fmt: skip
    assert named("a hot dog", "dog") == ["dog"]
    assert named("a dogma of catkins", "dog", "cat") == []


def test_synonyms_have_plurals_and_bring_their_names() -> None:
    assert named("two puppies and a hound", "cat", puppy="dog", hound="dog") == ["dog", "dog"]


@pytest.mark.parametrize(
    "text",
    [
        "There is no cat.",
        "There are zero cats, 0 cats and\n0 cats.",
        "No small red\nor blue cats here.",
        "There are no visible big, black cats.",
        "a room without a cat, without cats and without its cat",
        "Not a single cat is here, nor any other cat.",
        "There isn't any cat; there isn\u2019t a cat; there are not any cats.",
        "It does not show a cat, doesn't contain any cats and cannot have a cat.",
        "no cat or cat or white cat",
        "no cats, cats, or cats",
        "neither a cat nor a cat",
        "There are no unicorns or cats.",
    ],
)
def test_what_is_denied_is_not_named(text: str) -> None:
    assert named(text, "cat") == []
    assert named(f"{text} A dog.", "cat", "dog") == ["dog"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No, a cat.", ["cat"]),
        ("No. Cats are there.", ["cat"]),
        ("no dogs, a cat", ["cat"]),
        ("no dogs and two cats", ["cat"]),
        ("no dogs or two cats", ["cat"]),
        ("no dogs but a cat or dog", ["cat", "dog"]),
        ("a dog or a cat", ["dog", "cat"]),
        ("There is no dog, a cat or a dog.", ["cat", "dog"]),
        ("no more than two cats", ["cat"]),
        ("no dog on the cat", ["cat"]),
        ("not only a cat", ["cat"]),
        ("This is not a dog but a cat.", ["cat"]),
        ("It is not the cat that is red.", ["cat"]),
        ("a cat not red or wet", ["cat"]),
        ("not red or a cat", ["cat"]),
        ("Is it there or not? A cat.", ["cat"]),
        ("There is no hot dog, no doubt a dog.", ["dog"]),
        ("1,000 cats, 2.0 cats, 00 cats", ["cat", "cat", "cat"]),
        ("10 cats and a dog (no cat)", ["cat", "dog"]),
    ],
)
def test_a_denial_goes_as_far_as_its_own_things(text: str, expected: list[str]) -> None:
    assert named(text, "cat", "dog", "hot dog") == expected


def test_colors_are_those_that_are_given() -> None:
    vocabulary = Vocabulary(["cat"])
    assert vocabulary.mentions("no turquoise cats", ["turquoise"]) == []
    assert len(vocabulary.mentions("no turquoise cats")) == 1
    assert len(vocabulary.mentions("two turquoise cats", ["turquoise"])) == 1


def test_a_list_without_end_takes_time_in_proportion() -> None:
    found = Vocabulary(["cat"]).mentions("no " + "cat or " * 20_000)
    assert 19_000 < len(found) < 20_000  # the first of them are denied


def test_numbers_in_words_and_digits() -> None:
    words = {
        "zero": 0,
        "two": 2,
        "twenty": 20,
        "007": None,
        "70": 70,
        "\u0663": 3,
        "1" * 10: None,
        "no": None,
    }
    assert {word: number_of(word, words_of(word)[0]) for word in words} == words
    text = "7 1,000 2.0 3 4"
    numbers = [number_of(text, word) for word in words_of(text)]
    assert numbers == [7, 1, None, 2, None, 3, 4]


def test_places_of_mentions() -> None:
    text = "The dog's bowl, and\ntwo hot dogs."
    one, two = Vocabulary(["dog", "hot dog"]).mentions(text)
    assert (text[one.start : one.end], one.first_word, one.last_word) == ("dog's", 1, 1)
    assert (text[two.start : two.end], two.first_word, two.last_word) == ("hot dogs", 5, 6)
    assert [w.text for w in words_of(text)] == ["the", "dog", "bowl", "and", "two", "hot", "dogs"]


def test_articles_are_those_of_the_scenes() -> None:
    for name in CONCEPTS:
        assert with_article(name) == f"{article(name)} {name}"


def test_lists_of_names_and_nothing_else() -> None:
    table = pa.table({"o": [["a", "a"], None, []], "t": ["a", "b", "c"]})
    assert object_lists("x", table, "o") == [["a", "a"], None, []]
    with pytest.raises(SetupError, match="x: column 't' holds string; use one with a list"):
        object_lists("x", table, "t")


def test_a_file_of_synonyms(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"puppy": "dog"}))
    assert read_synonyms("x", str(path)) == {"puppy": "dog"}
    assert read_synonyms("x", None) == {}
    path.write_text("[1]")
    with pytest.raises(SetupError, match="must map texts to names"):
        read_synonyms("x", str(path))
    with pytest.raises(SetupError, match="cannot be read"):
        read_synonyms("x", str(tmp_path / "none.json"))

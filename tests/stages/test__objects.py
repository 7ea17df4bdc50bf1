"""Names in texts."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from winnow.contracts.errors import SetupError
from winnow.stages._objects import (
    Vocabulary,
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

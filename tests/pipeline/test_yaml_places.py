"""YAML with lines."""

from __future__ import annotations

import pytest

from winnow.contracts.errors import RecipeError
from winnow.pipeline.yaml_places import load_yaml

TEXT = """\
# a comment
name: x

stages:
  one: {a: 1,
    b: [10,
        20]}
  two:
"""


def test_values_come_with_the_line_of_their_key() -> None:
    data, places = load_yaml(TEXT, "r.yaml")
    assert data == {"name": "x", "stages": {"one": {"a": 1, "b": [10, 20]}, "two": None}}
    expected = {
        ("name",): 2,
        ("stages",): 4,
        ("stages", "one"): 5,
        ("stages", "one", "a"): 5,
        ("stages", "one", "b"): 6,
        ("stages", "one", "b", 1): 7,
        ("stages", "two"): 8,
    }
    assert {p: places.place(p) for p in expected} == {p: f"r.yaml:{n}" for p, n in expected.items()}


def test_what_is_not_there_has_the_line_of_its_nearest_parent() -> None:
    _, places = load_yaml(TEXT, "r.yaml")
    assert places.place(("stages", "two", "threshold", 3)) == "r.yaml:8"
    assert places.place(("nothing",)) in ("r.yaml", "r.yaml:2")


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_document_is_nothing(text: str) -> None:
    data, places = load_yaml(text, "r.yaml")
    assert data is None
    assert places.place(("a",)) == "r.yaml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r"^r.yaml:2: 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", r"^r.yaml:1: 'b' is given twice"),
        ("x: 1\nno: 1\n", r"^r.yaml:2: the key False is a bool; write it in quotes"),
        ("1: x\n", r"^r.yaml:1: the key 1 is a int"),
        ("a: 1\nb: [1\n", r"^r.yaml:\d: not valid YAML"),
        ("a: 1\n\tb: 2\n", r"^r.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", r"^r.yaml:2: not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']\n", r"^r.yaml:1: the tag .*os.system"),
        ("b: 1\na: !set {x}\n", r"^r.yaml:2: the tag '!set' is not for recipes"),
        ("a: &x [*x]\n", r"^r.yaml: an anchor contains itself"),
        ("a: !custom x\n", r"^r.yaml:1: not valid YAML"),
        ("base: &b {x: 1}\na:\n  <<: *b\n", r"^r.yaml:3: "),
        ("a: *unknown\n", r"^r.yaml:1: not valid YAML"),
    ],
)
def test_what_could_surprise_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_yaml(text, "r.yaml")

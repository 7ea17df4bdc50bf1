"""YAML with lines."""

from __future__ import annotations

from itertools import pairwise

import pytest

from winnow.contracts.errors import RecipeError
from winnow.pipeline import yaml_places
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
        ("a: !custom x\n", r"^r.yaml:1: the tag .!custom. is not for recipes"),
        ("base: &b {x: 1}\na:\n  <<: *b\n", r"^r.yaml:3: "),
        ("a: *unknown\n", r"^r.yaml:1: not valid YAML"),
        ("x: 1\na: 2024-02-30\n", r"^r.yaml:2: '2024-02-30' is no number or date that there is"),
        ("2024-02-30: 1\n", r"^r.yaml:1: '2024-02-30' is no number or date"),
        ("a: 0x_\n", r"^r.yaml:1: '0x_' is no number"),
        ("a: " + "9" * 5000 + "\n", r"^r.yaml:1: '9{60}' is no number"),
        ("a: 0x" + "f" * 5000 + "\n", r"^r.yaml:1: '0xf{58}' is no number"),
        ("a: !!int '5'\n", r"^r.yaml:1: the tag '.*:int' is not for recipes"),
        ("a: !!bool maybe\n", r"^r.yaml:1: the tag '.*:bool' is not for recipes"),
        ("!!timestamp x: 1\n", r"^r.yaml:1: the tag '.*:timestamp' is not for recipes"),
        ("b: 1\na: \x00\n", r"^r.yaml:2: not valid YAML: the character '\\x00' cannot"),
        ("a: " + "[" * 1000 + "\n", r"^r.yaml: .* nested too deeply"),
    ],
)
def test_what_could_surprise_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_yaml(text, "r.yaml")


def test_texts_that_look_like_something_else_are_texts_in_quotes() -> None:
    text = "\ufeffa: '2024-02-30'\nb: \"!!int 5\"\nc: '0x_'\nd: [5, 1.5, true, null, .inf]\n"
    data, _ = load_yaml(text, "r.yaml")
    assert data == {
        "a": "2024-02-30",
        "b": "!!int 5",
        "c": "0x_",
        "d": [5, 1.5, True, None, float("inf")],
    }


def test_anchors_in_anchors_are_counted_as_often_as_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(yaml_places, "MAX_PLACES", 1000)
    lines = ["a: &a [x, x, x, x]"]
    lines += [f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]" for a, b in pairwise("abcd")]
    data, _ = load_yaml("\n".join(lines), "r.yaml")
    assert data["d"][3][3][3] == ["x"] * 4
    with pytest.raises(RecipeError, match=r"^r.yaml:\d: more than 1,000 values"):
        load_yaml("\n".join([*lines, "e: [*d, *d, *d]"]), "r.yaml")

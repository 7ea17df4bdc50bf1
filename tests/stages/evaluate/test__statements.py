"""Statements read back from sentences that are put together at random, and from hostile ones."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.stages._objects import Vocabulary
from winnow.stages.evaluate._statements import COLORS, Relation, Statement, statements

PLURALS = {"cat": "cats", "hot dog": "hot dogs", "fire truck": "fire trucks", "mug": "mugs"}
NAMES = Vocabulary(PLURALS)
COUNTS = {"a": 1, "no": 0, "the": None, "those": None, "": None, "two": 2, "twenty": 20, "117": 117}
PREDICATES = {
    "to the left of": "left of", "right of": "right of", "above": "above", "below": "below",
    "on top of": "on",
}  # fmt: skip

phrases = st.tuples(
    st.sampled_from(list(COUNTS)),
    st.sampled_from(["", "small", "huge"]),
    st.sampled_from(["", "red", "grey"]),
    st.booleans(),
    st.sampled_from(list(PLURALS)),
)
joints = st.tuples(
    st.sampled_from(["", "is ", "are ", "stands ", "is not ", "and is "]),
    st.sampled_from([*PREDICATES, "next to", "and"]),
    st.sampled_from([" ", "\n ", ". ", "; "]),
)


@settings(max_examples=120, deadline=None)
@given(phrases, st.lists(st.tuples(joints, phrases), max_size=5))
def test_what_is_put_together_is_read_back(first: tuple, others: list[tuple]) -> None:  # type: ignore[type-arg]
    parts, expected, relations = [], [], []
    for joint, (count, size, color, turned, name) in [((("", "", "")), first), *others]:
        verb, word, gap = joint
        looks = [color, size] if turned else [size, color]
        called = name if COUNTS[count] == 1 else PLURALS[name]
        said = " ".join(filter(None, [count, *looks, called]))
        parts.append(f" {verb}{word}{gap}{said}" if word else said)
        understood = word in PREDICATES and verb in ("", "is ", "are ", "stands ") and gap.isspace()
        relations.append((PREDICATES[word], name) if understood and count != "no" else None)
        expected.append((name, COUNTS[count], color or None))
    relations.append(None)
    text = "".join(parts)
    assert statements(text, NAMES, COLORS) == [
        Statement(name, count, color, related and Relation(name, *related))
        for (name, count, color), related in zip(expected, relations[1:], strict=True)
        if count != 0
    ], text


@pytest.mark.parametrize("digits", ["1" * 5000, "\u0661" * 5000, "1" * 10, "00", "1,000"])
def test_a_number_that_counts_nothing(digits: str) -> None:
    """Python reads at most 4,300 digits; a captioner that repeats itself writes more."""
    assert statements(f"{digits} cats", NAMES, COLORS) == [Statement("cat", None, None, None)]


def test_a_relation_to_what_is_not_there_is_none() -> None:
    found = statements("A cat is above no mugs and two hot dogs.", NAMES, COLORS)
    assert found == [Statement("cat", 1, None, None), Statement("hot dog", 2, None, None)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There are no cats or two mugs.", [("mug", 2, None)]),
        ("There are no cats or red mugs, and a hot dog.", [("hot dog", 1, None)]),
        ("A mug without a cat is not a hot dog.", [("mug", 1, None)]),
        ("No. Cats sit there.", [("cat", None, None)]),
        ("The sky is blue. Mugs stand below.", [("mug", None, None)]),
        ("There are 1,000 cats.", [("cat", None, None)]),
        ("A big, red cat.", [("cat", 1, "red")]),
    ],
)
def test_what_is_denied_is_not_stated(
    text: str, expected: list[tuple[str, int | None, str | None]]
) -> None:
    found = statements(text, NAMES, COLORS)
    assert [(said.name, said.count, said.color) for said in found] == expected


def test_colors_that_are_given_may_stand_behind_no() -> None:
    assert statements("no turquoise cats above a mug", NAMES, ["turquoise"]) == [
        Statement("mug", 1, None, None)
    ]


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["a", "cat", "cats", "no", "red", "above", "is", ".", "9", "\u00b2", "\x00", "'s", "-"]
        )
    )
)  # fmt: skip
def test_any_text_is_read(pieces: list[str]) -> None:
    for joint in (" ", ""):
        text = joint.join(pieces)
        found = statements(text, NAMES, COLORS)
        assert len(found) == len(NAMES.mentions(text))
        assert all(said.count != 0 for said in found)

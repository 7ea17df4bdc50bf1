"""Questions and answers from random facts: drawn fairly, and right by plain arithmetic."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.models.conversation import Turn
from winnow.stages._conversations import (
    Absent,
    Dice,
    Facts,
    Thing,
    conversation,
    detail,
    listed,
    number,
    phrase,
    plural,
    reasoning,
)

NAMES = ["cat", "hot dog", "slice of pizza", "{}", "%s", "\u732b", "e\u0301", "\U0001f408"]
WORDS = {"a": 1, "an": 1} | {number(count): count for count in range(13)}

WHERE = re.compile(
    r"(?:Is|Are) the (.+?) (to the left of|to the right of|above|below) the (.+)\?(?: Explain\.)?"
)


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    """Facts as the stage has them: a count is unknown or 1 and more, no name comes twice."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=5))
    counts = st.none() | st.integers(1, 30)
    colors = st.sampled_from([None, None, "red", "{0}"])
    things = tuple(Thing(name=n, count=draw(counts), color=draw(colors)) for n in names)
    order = draw(st.permutations(names)) if names else []
    relations = tuple(
        (order[i], predicate, order[j])
        for i in range(len(order))
        for j in range(i + 1, len(order))
        for predicate in [draw(st.sampled_from([None, "left of", "above", "behind"]))]
        if predicate
    )
    return Facts(
        things=draw(st.sampled_from([things, things, None])),
        relations=relations,
        background=draw(st.sampled_from([None, "solid:red", "stripes:blue:red", "{}", "a: b"])),
        caption=draw(st.sampled_from([None, " a caption "])),
    )


def sound(turns: list[Turn]) -> bool:
    return all(t.prompt and t.answer and t.answer == t.answer.strip() for t in turns)


@settings(max_examples=60, deadline=None)
@given(facts(), st.integers(0, 9), st.integers(1, 7))
def test_conversations_fit_and_are_even(known: Facts, seed: int, most: int) -> None:
    absent = Absent({"cat": 3, "owl": 2, "ox": 0})
    turns = conversation(known, Dice("t", seed), num_turns=most, absent=absent)
    assert turns == conversation(known, Dice("t", seed), num_turns=most, absent=absent)
    assert len(turns) <= most
    assert sound(turns)
    said = Counter(t.answer.split(",")[0] for t in turns if t.answer.startswith(("Yes,", "No,")))
    assert said["Yes"] == said["No"] <= 1
    assert bool(turns) == bool(known.things)
    without = conversation(known, Dice("t", seed), num_turns=most, absent=None)
    assert not any(t.answer.startswith(("Yes,", "No,")) for t in without)


@settings(max_examples=60, deadline=None)
@given(facts(), st.integers(0, 9))
def test_details_name_each_thing_once(known: Facts, seed: int) -> None:
    turns = detail(known, Dice("t", seed))
    if known.things is None:
        assert [t.answer for t in turns] == (["a caption"] if known.caption else [])
        return
    assert len(turns) == bool(known.things)
    for turn in turns:
        head = turn.answer.split(". The background")[0]
        assert all(phrase(thing) in head for thing in known.things)
        also = re.search(r"There (is|are) also (.*?)\.", turn.answer)
        if also:
            several = " and " in also[2] or also[2].split()[0] not in ("a", "an", "one")
            assert also[1] == ("are" if several else "is")


@settings(max_examples=120, deadline=None)
@given(facts(), st.integers(0, 9))
def test_reasons_add_up(known: Facts, seed: int) -> None:
    turns = reasoning(known, Dice("t", seed))
    assert len(turns) <= 1
    assert sound(turns)
    counts = {plural(t.name): t.count for t in known.things or ()}
    for turn in turns:
        if total := re.search(r": ([\d +]+) = (\d+) things\.$", turn.answer):
            parts = [int(part) for part in total[1].split(" + ")]
            assert sum(parts) == int(total[2])
            assert sorted(parts) == sorted(c for c in counts.values() if c is not None)
        elif compared := re.fullmatch(r"Are there more (.+) than (.+)\?", turn.prompt):
            more = (counts[compared[1]] or 0) - (counts[compared[2]] or 0)
            verdict = f"yes: {more} more." if more > 0 else "no: fewer." if more else "no: as many."
            assert turn.answer.endswith(f", so {verdict}")
        elif left := re.search(r"how many (.+) would be left\?", turn.prompt):
            said = re.search(r"one of them, (\w+) ", turn.answer)
            assert said is not None
            fewer = (counts[left[1]] or 0) - 1
            assert WORDS.get(said[1], said[1]) in (fewer, str(fewer))
        else:
            asked = WHERE.fullmatch(turn.prompt)
            assert asked is not None, turn.prompt
            word = asked[2].removeprefix("to the ")
            inverse = {"left of": "right of", "above": "below"}
            true = {(a, p, b) for a, p, b in known.relations} | {
                (b, inverse[p], a) for a, p, b in known.relations if p in inverse
            }
            named = {n: t.name for t in known.things or () for n in (t.name, plural(t.name))}
            named |= {r: r for relation in known.relations for r in relation[::2]}
            assert ((named[asked[1]], word, named[asked[3]]) in true) == (turn.answer[:3] == "Yes")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(), max_size=8))
def test_draws_are_of_the_values(seed: int, values: list[int]) -> None:
    dice = Dice("t", seed, b"\xff", "\u732b")
    assert sorted(dice.shuffled(values)) == sorted(values)
    assert 0 <= dice.below(7) < 7
    assert not values or dice.pick(values) in values


def test_every_order_is_as_likely() -> None:
    orders = Counter("".join(Dice("order", seed).shuffled("abc")) for seed in range(6000))
    assert len(orders) == 6
    assert all(880 < count < 1120 for count in orders.values())  # 4 standard deviations


@pytest.mark.parametrize(
    ("words", "text"),
    [(["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_lists(words: list[str], text: str) -> None:
    assert listed(words) == text

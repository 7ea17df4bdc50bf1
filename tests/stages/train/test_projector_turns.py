"""LLaVA conversations as turns, and what a sample says with and without its picture."""

from __future__ import annotations

import pytest

from winnow.models.conversation import Turn
from winnow.stages.train._projector_turns import Lesson, turns_of


def _said(*texts: str, names: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": names[index % 2], "value": text} for index, text in enumerate(texts)]


def test_conversations_become_turns() -> None:
    asked = _said("<image>\nWhat is it?", " A cat. ", "Is it asleep?\n<image>", "No.")
    expected = (Turn("What is it?", "A cat."), Turn("Is it asleep?", "No."))
    assert turns_of(asked) == expected
    assert turns_of([{"from": "system", "value": "Be brief."}, *asked]) == expected
    assert turns_of(_said("Who?", "Me.", names=("user", "assistant"))) == (Turn("Who?", "Me."),)
    assert turns_of(None) == ()


@pytest.mark.parametrize(
    "value",
    [
        [],
        "a text",
        ["a text"],
        {"from": "human", "value": "What?"},
        _said("What?"),
        _said("What?", "This.", "And?"),
        _said("What?", " "),
        _said("This.", "What?", names=("gpt", "human")),
        [{"from": "human", "value": "What?"}, {"from": "gpt", "value": None}],
        [{"from": "human"}, {"from": "gpt", "value": "This."}],
        [{"from": "system", "value": "Be brief."}],
        [{"from": ["human"], "value": "What?"}, {"from": "gpt", "value": "This."}],
    ],
)
def test_what_is_no_conversation(value: object) -> None:
    assert turns_of(value) is None


def test_what_a_sample_says() -> None:
    talk = Lesson(captions=("a cat",), turns=(Turn("What?", "A cat."), Turn("Asleep?", "No.")))
    assert talk.caption(0, 7) == "a cat"
    assert talk.plain() == "USER: What? ASSISTANT: A cat. USER: Asleep? ASSISTANT: No."
    assert Lesson(turns=talk.turns).caption(0, 0) == ""
    assert Lesson(captions=("a cat",)).plain() == "a cat"
    assert Lesson(parts=(0, " a cat", 1, "a dog ")).plain() == "a cat a dog"
    several = Lesson(key="k", captions=("a", "b", "c"), has_choices=True)
    drawn = [several.caption(1, epoch) for epoch in range(60)]
    assert set(drawn) == {"a", "b", "c"}
    assert drawn == [several.caption(1, epoch) for epoch in range(60)]

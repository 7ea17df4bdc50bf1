"""The form of conversations: as text for a language model, and read from LLaVA's form."""

from __future__ import annotations

import pytest

from winnow.models.conversation import Turn, llava_conversation, pieces


def _said(*texts: str, names: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": names[index % 2], "value": text} for index, text in enumerate(texts)]


def test_conversations_become_turns() -> None:
    asked = _said("<image>\nWhat is it?", " A cat. ", "Is it asleep?\n<image>", "No.")
    expected = (Turn("What is it?", "A cat."), Turn("Is it asleep?", "No."))
    assert llava_conversation(asked) == expected
    assert llava_conversation([{"from": "system", "value": "Be brief."}, *asked]) == expected
    assert llava_conversation(_said("Who?", "Me.", names=("user", "assistant"))) == (
        Turn("Who?", "Me."),
    )
    assert llava_conversation(None) == ()


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
        _said("What?", "<image>\n"),
        _said("This.", "What?", names=("gpt", "human")),
        [{"from": "human", "value": "What?"}, {"from": "gpt", "value": None}],
        [{"from": "human"}, {"from": "gpt", "value": "This."}],
        [{"from": "system", "value": "Be brief."}],
        [{"from": ["human"], "value": "What?"}, {"from": "gpt", "value": "This."}],
    ],
)
def test_what_is_no_conversation(value: object) -> None:
    assert llava_conversation(value) is None


def test_only_answers_count_and_the_text_is_llavas() -> None:
    found = pieces([Turn(" What is it?", "A cat. "), Turn("Asleep?", "No.")])
    assert "".join(piece.text for piece in found) == (
        "USER: What is it? ASSISTANT: A cat.USER: Asleep? ASSISTANT: No."
    )
    assert [piece.is_answer for piece in found] == [False, True, False, True]

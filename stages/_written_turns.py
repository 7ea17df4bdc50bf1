"""Conversations that a model wrote as text: what to ask it for, and how its answer is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from winnow.models.conversation import Turn
from winnow.stages._conversations import Kind

WRITTEN_PROMPT = (
    "Write a conversation between a person who asks about this picture and an assistant who sees "
    "it. Ask only what the picture answers for certain: what there is, how many, which colors, "
    "where things are, what somebody does. Write three to five pairs, each as two lines: one that "
    "starts with 'Q:', and one that starts with 'A:'. Write nothing else."
)
DETAIL_PROMPT = (
    "Write one question that asks for a detailed description of this picture, and its answer for "
    "somebody who cannot see it. Say in the answer, in whole sentences, what there is, how many, "
    "which colors, where things are, what somebody does. Say only what the picture shows for "
    "certain. Write two parts: one that starts with 'Q:', and one that starts with 'A:'. Write "
    "nothing else."
)
REASONING_PROMPT = (
    "Write one question about this picture whose answer takes thought: why something is as it is, "
    "what will come of it, what somebody has to mind, what follows from what is there. Ask only "
    "what the picture answers for certain. Begin the answer with what is seen, and go on step by "
    "step to what follows from it. Write two parts: one that starts with 'Q:', and one that starts "
    "with 'A:'. Write nothing else."
)
INSTRUCTIONS: Mapping[Kind, str] = {
    "conversation": WRITTEN_PROMPT,
    "detail": DETAIL_PROMPT,
    "reasoning": REASONING_PROMPT,
}
"""What the stage ``caption`` asks a model for, by the kind of Liu et al. 2023."""
_MARK = re.compile(
    r"^[ \t*#>-]{0,8}(?:(?P<q>q|question|human|user)|(?P<a>a|answer|assistant|gpt))"
    r"[ \t]*\d*[ \t]*[*]*[ \t]*[:.)][ \t]*[*]*\s*",
    re.IGNORECASE | re.MULTILINE,
)


def turns_of(text: str) -> list[Turn]:
    """Return the questions and answers of a text with lines "Q: ..." and "A: ...".

    "Question", "User", "Human" and "Answer", "Assistant", "GPT" stand for these too, with numbers
    or stars about them; further lines belong to the line before. What comes before the first
    question is dropped, and so is a last question without an answer. [] for a text that is not
    questions and answers by turns, or where one of them is empty.
    """
    marks = list(_MARK.finditer(text))
    while marks and marks[0]["q"] is None:
        marks.pop(0)
    if not marks:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    parts = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    if len(marks) % 2:
        marks, parts = marks[:-1], parts[:-1]
    by_turns = all((mark["q"] is None) == bool(place % 2) for place, mark in enumerate(marks))
    if not by_turns or not all(parts):
        return []
    return [Turn(q, a) for q, a in zip(parts[::2], parts[1::2], strict=True)]


def first_turns(texts: Sequence[str | None] | None) -> list[Turn]:
    """Return the conversation of the first text that holds one; [] where none does."""
    found = (turns_of(text) for text in texts or () if text)
    return next((turns for turns in found if turns), [])

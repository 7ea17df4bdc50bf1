"""How prompts and answers become one text: the same words in training, captioning and evaluation.

The form is that of LLaVA-1.5's conversations ("USER: ... ASSISTANT: ...", Liu et al. 2023), without
its system message. The picture's tokens, where a connector gives any, stand before the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CAPTION_PROMPT = "Describe the picture."
"""What a captioner is asked where a recipe says nothing else."""
PARAGRAPH_PROMPT = "Describe the picture in detail."
IMAGE_TOKEN = "<image>"  # noqa: S105
"""Where the picture stands in LLaVA's conversations."""
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and its answer."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the text. Only answers count in the loss; each ends with the end-of-text token."""

    text: str
    is_answer: bool


def pieces(turns: Sequence[Turn]) -> list[Piece]:
    """Return a conversation as alternating prompts and answers."""
    found = []
    for turn in turns:
        found.append(Piece(question(turn.prompt), is_answer=False))
        found.append(Piece(answered(turn.answer), is_answer=True))
    return found


def question(prompt: str) -> str:
    """Return the text that an answer follows."""
    return f"USER: {prompt.strip()} ASSISTANT:"


def answered(answer: str) -> str:
    """Return an answer as it follows ``question``: one space, then the words."""
    return f" {answer.strip()}"


def llava_conversation(value: object) -> tuple[Turn, ...] | None:
    """Return a LLaVA conversation as turns, () for null, None for what is no conversation.

    A list of {"from": "human" | "gpt" (or "user" | "assistant"), "value": text} that alternates
    and ends with an answer; a first "system" turn and the mark ``<image>`` are left out. Empty
    answers are none.
    """
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return None
    said = [(item.get("from"), item.get("value")) for item in value]
    if said and said[0][0] == "system":
        said = said[1:]
    found = []
    for (asker, prompt), (answerer, answer) in zip(said[::2], said[1::2], strict=False):
        texts = isinstance(prompt, str) and isinstance(answer, str) and bool(_unmarked(answer))
        if asker not in _ASKS or answerer not in _ANSWERS or not texts:
            return None
        found.append(Turn(_unmarked(prompt), _unmarked(answer)))
    return None if len(said) % 2 or not found else tuple(found)


def _unmarked(text: object) -> str:
    return str(text).replace(IMAGE_TOKEN, " ").strip()

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

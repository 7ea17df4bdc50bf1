"""What a projector model learns to say about the pictures of one sample, read from its members."""

from __future__ import annotations

from dataclasses import dataclass

from winnow.models.conversation import Turn, answered, question
from winnow.stages.train._captions import caption_number

IMAGE_MARK = "<image>"
_ASKS, _ANSWERS = ("human", "user"), ("gpt", "assistant")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """The texts of one sample. captions: () where there is none; has_choices: whether they are of
    a list, one of which is drawn each epoch. turns: its conversation, () where
    there is none. parts: its interleaved text, words and numbers of the sample's pictures, () where
    there is none."""

    key: str = ""
    captions: tuple[str, ...] = ()
    has_choices: bool = False
    turns: tuple[Turn, ...] = ()
    parts: tuple[str | int, ...] = ()

    def caption(self, seed: int, epoch: int) -> str:
        """Return the caption that the sample has in an epoch; "" where it has none."""
        if not self.captions:
            return ""
        return self.captions[caption_number(seed, epoch, self.key, len(self.captions))]

    def plain(self) -> str:
        """Return the words without any picture, as one text."""
        if self.turns:
            return " ".join(question(t.prompt) + answered(t.answer) for t in self.turns)
        if self.parts:
            return " ".join(part.strip() for part in self.parts if isinstance(part, str))
        return self.captions[0] if self.captions else ""


def turns_of(value: object) -> tuple[Turn, ...] | None:
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
        texts = isinstance(prompt, str) and isinstance(answer, str) and bool(answer.strip())
        if asker not in _ASKS or answerer not in _ANSWERS or not texts:
            return None
        found.append(Turn(_unmarked(prompt), _unmarked(answer)))
    return None if len(said) % 2 or not found else tuple(found)


def _unmarked(text: object) -> str:
    return str(text).replace(IMAGE_MARK, " ").strip()

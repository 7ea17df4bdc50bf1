"""What a projector model learns to say about the pictures of one sample, read from its members."""

from __future__ import annotations

from dataclasses import dataclass

from winnow.models.conversation import Turn, answered, question
from winnow.stages.train._captions import caption_number


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

"""What a sample says with and without its picture."""

from __future__ import annotations

from winnow.models.conversation import Turn
from winnow.stages.train._projector_turns import Lesson


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

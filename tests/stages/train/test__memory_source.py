"""Hard negatives and captions beside the samples that they are of."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import SetupError
from winnow.stages.train import _memory_source as memory
from winnow.stages.train._config import TrainConfig
from winnow.stages.train.shards import Samples

TEXTS = st.sampled_from(["", " ", "a", " b ", "c"])


def samples(values: list[Any]) -> Samples:
    count = len(values)
    return Samples(
        pixels=np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(3, 3),
        texts=[f"text {n}" for n in range(count)],
        digest="",
        skipped={},
        keys=[f"k{n}" for n in range(count)],
        columns={"wrong": values},
    )


@given(st.lists(st.one_of(st.none(), TEXTS, st.lists(TEXTS, max_size=3)), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_negatives_of_a_batch_are_those_of_its_samples(values: list[Any]) -> None:
    cleaned = [
        [t.strip() for t in ([v] if isinstance(v, str) else v or []) if t.strip()] for v in values
    ]
    count = max(map(len, cleaned))
    if not count:
        with pytest.raises(SetupError, match="no sample has a text in the column wrong"):
            memory.hard_negatives(samples(values), "wrong")
        return
    found = memory.hard_negatives(samples(values), "wrong")
    assert found == [text for texts in cleaned for text in (*texts, *[""] * (count - len(texts)))]
    source = memory.MemorySource(
        samples=samples(values),
        tokens=np.arange(len(values), dtype=np.int32)[:, None],
        starts=np.arange(len(values) + 1),
        negatives=np.array([[ord(text[0]) if text else 0] for text in found], np.int32),
        present=np.array([bool(text) for text in found]),
        meanings=None,
        config=TrainConfig(batch_size=3, seed=5),
    )
    for pixels, tokens, extras in islice(source.batches(2), 4):
        rows = pixels[:, 0, 0, 0].tolist()
        assert tokens[:, 0].tolist() == rows
        assert extras.negatives is not None
        assert extras.has_negative is not None
        shown = extras.negatives.view(3, count).tolist()
        there = extras.has_negative.view(3, count).tolist()
        for row, letters, present in zip(rows, shown, there, strict=True):
            texts = cleaned[row]
            assert "".join(map(chr, letters[: len(texts)])) == "".join(texts)
            assert present == [True] * len(texts) + [False] * (count - len(texts))


@pytest.mark.parametrize("value", [3, {"a": "b"}, [1], [None], [["a"]], True])
def test_what_is_no_text_is_named(value: Any) -> None:
    with pytest.raises(SetupError, match="wrong of sample k1 is no text and no list of texts"):
        memory.hard_negatives(samples(["a", value]), "wrong")


def test_a_sample_without_captions_of_the_column_keeps_its_own() -> None:
    found = memory.caption_lists(samples([["a", None, " b "], None, []]), "wrong")
    assert found == [["a", "b"], ["text 1"], ["text 2"]]
    assert memory.caption_lists(samples([1, 2]), None) == [["text 0"], ["text 1"]]
    assert memory.hard_negatives(samples([1, 2]), None) is None

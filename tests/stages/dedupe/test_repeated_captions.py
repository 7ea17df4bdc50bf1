"""Repeated captions against a dictionary, and what normalisation makes equal."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError
from winnow.stages.dedupe.repeated_captions import RepeatedCaptions, caption_key

TEXTS = st.one_of(st.none(), st.sampled_from(["", "a cat", "A  Cat ", "stra\u00dfe", "STRASSE"]))


def table(texts: list[str | None], column: str = "text") -> pa.Table:
    uid = pa.array([i.to_bytes(16, "big") for i in range(len(texts))], pa.binary(16))
    return pa.table({"uid": uid, column: pa.array(texts, pa.string())})


@settings(max_examples=40, deadline=None)
@given(shards=st.lists(st.lists(TEXTS, max_size=8), max_size=4), normalize=st.booleans())
def test_equals_a_dictionary(
    run_global: Any, shards: list[list[str | None]], normalize: bool
) -> None:
    found, counters = run_global(RepeatedCaptions(normalize=normalize), [table(s) for s in shards])

    def key(text: str | None) -> str | None:
        return " ".join(text.casefold().split()) if text is not None and normalize else text

    everything = [key(t) for s in shards for t in s]
    count = Counter(everything)
    assert [n for t in found for n in t["caption_occurrences"].to_pylist()] == [
        None if text is None else count[text] for text in everything
    ]
    assert counters["rows_with_a_shared_caption"] == sum(
        text is not None and count[text] > 1 for text in everything
    )


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("A cat", "a CAT", True),
        (" a\tcat\n", "a cat", True),
        ("a\u00a0cat", "a cat", True),
        ("Stra\u00dfe", "STRASSE", True),
        ("acat", "a cat", False),
        ("cat", "cat.", False),
        ("", "   ", True),
    ],
)
def test_normalisation(a: str, b: str, same: bool) -> None:
    assert (caption_key(a, normalize=True) == caption_key(b, normalize=True)) is same
    assert caption_key(a, normalize=False) != caption_key(b, normalize=False)


def test_another_column(run_global: Any) -> None:
    stage = RepeatedCaptions(column="title")
    found, _ = run_global(stage, [table(["x", "y"], "title"), table(["X"], "title")])
    assert [t["caption_occurrences"].to_pylist() for t in found] == [[2, 1], [2]]
    with pytest.raises(RecipeError, match="column='' names no column"):
        RepeatedCaptions(column="")

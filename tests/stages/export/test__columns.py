"""Bytes of rows against Arrow's own values, and which columns are what."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.media import MEDIA_REF
from winnow.stages.export._columns import (
    annotation_names,
    available_payloads,
    check_annotations,
    check_text,
    choose_payloads,
    own_names,
    payload_views,
    row_payloads,
)

CELLS = st.lists(
    st.tuples(*[st.none() | st.binary(max_size=5)] * 2, st.booleans()), min_size=1, max_size=12
)


@settings(max_examples=80, deadline=None)
@given(CELLS, st.sampled_from([pa.large_binary(), pa.binary(), pa.binary_view()]),
       st.integers(0, 11), st.integers(0, 12), st.sampled_from(["any", "all"]))  # fmt: skip
def test_bytes_of_a_part_of_a_batch(
    cells: list[Any], kind: pa.DataType, begin: int, length: int, require: Any
) -> None:
    columns = {"image": [c[0] for c in cells], "audio": [c[1] for c in cells]}
    whole = pa.record_batch({name: pa.array(values, kind) for name, values in columns.items()})
    batch = whole.slice(min(begin, len(cells)), length)
    uids = [bytes([i]) * 16 for i in range(batch.num_rows)]
    rows = [(row["image"], row["audio"]) for row in batch.to_pylist()]
    enough = all if require == "all" else any
    short = [i for i, row in enumerate(rows) if not enough(part is not None for part in row)]
    if short:
        with pytest.raises(ShardError, match=f"has not {require} of image, audio") as caught:
            row_payloads(batch, ["image", "audio"], require, uids)
        assert uids[short[0]].hex() in str(caught.value)
    else:
        found = row_payloads(batch, ["image", "audio"], require, uids)
        got = [tuple(v if v is None else bytes(v) for v in row) for row in zip(*found, strict=True)]
        assert got == rows
    images = [row[0] for row in rows]
    if None in images:
        with pytest.raises(ShardError, match="has no image") as caught:
            list(payload_views(batch, "image", uids))
        assert uids[images.index(None)].hex() in str(caught.value)
    else:
        assert [bytes(view) for view in payload_views(batch, "image", uids)] == images


def test_text_alone_and_no_rows() -> None:
    batch = pa.record_batch({"image": pa.array([], pa.large_binary())})
    assert list(payload_views(batch, "image", [])) == []
    assert row_payloads(batch, [], "any", []) == []
    assert row_payloads(batch, ["image"], "all", []) == [[]]


SCHEMA = pa.schema(
    [
        ("uid", pa.binary(16)),
        ("crop", pa.large_binary()),
        ("audio_ref", MEDIA_REF),
        ("text", pa.large_string()),
        ("label", pa.dictionary(pa.int8(), pa.string())),
        ("tags", pa.list_(pa.string())),
        ("small", pa.binary()),
        ("image", pa.large_binary()),
        ("image_ref", MEDIA_REF),
    ]
)


def test_which_columns_are_what() -> None:
    assert available_payloads(SCHEMA) == ["image", "audio", "crop"]
    assert annotation_names(SCHEMA) == ["uid", "text", "label", "tags", "small"]
    assert choose_payloads("me", None, SCHEMA) == ["image"]
    assert choose_payloads("me", ("crop", "audio"), SCHEMA) == ["crop", "audio"]
    assert choose_payloads("me", (), SCHEMA) == []
    assert choose_payloads("me", None, pa.schema([("text", pa.string())])) == []
    assert own_names(["image", "crop", "audio", "audio_2"]) == [False, True, False, True]
    for text in (None, "text", "label"):
        check_text("me", text, SCHEMA)
    check_annotations("me", ["uid", "key", "tags"], SCHEMA)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: choose_payloads("me", None, pa.schema([("url", pa.string())])), "add the stage"),
        (lambda: choose_payloads("me", "small", SCHEMA), "there is image, audio, crop"),
        (lambda: choose_payloads("me", ("crop", "crop"), SCHEMA), "names 'crop' twice"),
        (lambda: check_text("me", "tags", SCHEMA), "is list<item: string>, not a string column"),
        (lambda: check_text("me", "caption", SCHEMA), "there is text, label, or `text: null`"),
        (lambda: check_annotations("me", ["tag"], SCHEMA), "did you mean tags"),
        (lambda: check_annotations("me", ["image_ref"], SCHEMA), "is not an annotation"),
    ],
)
def test_what_cannot_be_meant_is_refused(call: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=f"me: .*{message}"):
        call()

"""Parquet with the media inside: content, bytes, and what datasets and pandas make of it."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.registry import EXPORTERS
from winnow.stages.export.parquet import GROUP_ROWS, Parquet


def write(exporter: Parquet, batches: Iterable[pa.RecordBatch]) -> tuple[bytes, dict[str, Any]]:
    out = io.BytesIO()
    extra = exporter.write_file(iter(batches), out)
    return out.getvalue(), dict(extra)


def test_it_is_registered() -> None:
    assert EXPORTERS["parquet"] is Parquet


def test_every_row_has_the_bytes_and_every_annotation(rows: pa.RecordBatch) -> None:
    data, extra = write(Parquet(), [rows])
    table = pq.read_table(io.BytesIO(data))
    keys = rows["key"].to_pylist()
    expected = [
        {"bytes": image, "path": f"{key}.jpg"}
        for key, image in zip(keys, rows["image"].to_pylist(), strict=True)
    ]
    assert table.column("image").to_pylist() == expected
    for name in rows.schema.names:
        if name not in ("image", "ratio", "clip_score", "box"):
            assert table.column(name).to_pylist() == rows[name].to_pylist(), name
    assert table.column_names == ["uid", "key", "image", *rows.schema.names[3:]]
    assert extra["extensions"] == {"jpg": 40}
    assert extra["payload"] == "image"


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=5))
def test_bytes_do_not_depend_on_the_batches(rows: pa.RecordBatch, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), rows.num_rows]
    pieces = [rows.slice(a, b - a) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    copied = [pa.RecordBatch.from_pylist(p.to_pylist(), p.schema) for p in pieces]
    assert write(Parquet(), copied) == write(Parquet(), [rows])


def test_row_groups_are_bounded(rows: pa.RecordBatch) -> None:
    many = [rows] * (GROUP_ROWS // rows.num_rows + 1)
    file = pq.ParquetFile(io.BytesIO(write(Parquet(), many)[0]))
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert counts == [GROUP_ROWS, 40]


def test_columns_choose_and_order(rows: pa.RecordBatch) -> None:
    data, _ = write(Parquet(columns=("width", "text")), [rows])
    assert pq.read_schema(io.BytesIO(data)).names == ["uid", "key", "image", "width", "text"]


def test_a_resized_image_is_the_column_image(rows: pa.RecordBatch) -> None:
    index = rows.schema.get_field_index("image")
    names = [*rows.schema.names[:index], "resized_image", *rows.schema.names[index + 1 :]]
    renamed = pa.RecordBatch.from_arrays(rows.columns, names)
    data, _ = write(Parquet(payload="resized_image"), [renamed])
    read = pq.read_table(io.BytesIO(data))["image"].to_pylist()
    assert [r["bytes"] for r in read] == rows["image"].to_pylist()


def test_pandas_reads_it(parquets: Path, rows: pa.RecordBatch) -> None:
    frame = pd.read_parquet(parquets / "00000.parquet")
    assert list(frame["text"]) == rows["text"].to_pylist()[:20]
    assert Image.open(io.BytesIO(frame["image"][3]["bytes"])).size == (32, 24)


def test_a_row_without_payload_fails_the_file(rows: pa.RecordBatch) -> None:
    index = rows.schema.get_field_index("image")
    broken = rows.set_column(index, "image", pa.nulls(rows.num_rows, pa.large_binary()))
    with pytest.raises(ShardError, match="no image"):
        write(Parquet(), [broken])


def test_wrong_parameters_and_columns(rows: pa.RecordBatch) -> None:
    with pytest.raises(RecipeError, match="rows_per_file=0"):
        Parquet(rows_per_file=0)
    with pytest.raises(RecipeError, match="payload='audio' is not a column with media"):
        Parquet(payload="audio").payloads(rows.schema)
    taken = pa.schema([("resized_image", pa.large_binary()), ("image", pa.string())])
    with pytest.raises(RecipeError, match="'image' is there already"):
        Parquet(payload="resized_image").payloads(taken)


def test_media_of_two_gigabytes_in_a_batch(rows: pa.RecordBatch) -> None:
    first, second = (rows["image"][place].as_py() for place in (0, 1))
    # Pages that nobody touches take no memory: the media stand at the end of 2 GiB.
    store = np.zeros(2**31 + len(first) + len(second), np.uint8)
    store[2**31 :] = np.frombuffer(first + second, np.uint8)
    ends = np.array([2**31, 2**31 + len(first), len(store)], np.int64)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(store)]
    far = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 2, buffers)
    with pytest.raises(pa.ArrowInvalid, match="too large"):
        far.cast(pa.binary())
    two = rows.slice(0, 2)
    index = two.schema.get_field_index("image")
    assert write(Parquet(), [two.set_column(index, "image", far)]) == write(Parquet(), [two])

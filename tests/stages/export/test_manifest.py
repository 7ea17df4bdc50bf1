"""The manifest and the fixed options of every Parquet file."""

from __future__ import annotations

import io
import uuid
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.contracts.media import MEDIA_REF
from winnow.stages.export import _manifest


class WriteOnly:
    """A stream that cannot seek or tell."""

    closed = False

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def table_of(rows: pa.RecordBatch) -> pa.Table:
    table = pa.Table.from_batches([rows]).drop_columns(["image"])
    return table.append_column("file", pa.array(["00000.tar"] * rows.num_rows))


def merged(parts: list[pa.Table], schema: pa.Schema) -> bytes:
    out = WriteOnly()
    assert _manifest.merge(iter(parts), out, schema) == sum(p.num_rows for p in parts)
    return bytes(out.data)


def test_every_value_comes_back(rows: pa.RecordBatch) -> None:
    table = table_of(rows)
    read = pq.read_table(io.BytesIO(merged([table], table.schema)))
    assert read.schema.field("uid").type == pa.uuid()
    assert read.column("uid").combine_chunks().storage.to_pylist() == table["uid"].to_pylist()
    assert read.schema.field("near_duplicates").type == pa.list_(pa.binary())
    for name in table.column_names:
        if name not in ("uid", "ratio", "clip_score", "box"):
            assert read.column(name).to_pylist() == table.column(name).to_pylist(), name
    for name in ("ratio", "clip_score"):
        assert repr(read.column(name).to_pylist()) == repr(table.column(name).to_pylist())


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=5))
def test_bytes_do_not_depend_on_the_parts(rows: pa.RecordBatch, cuts: list[int]) -> None:
    table = table_of(rows)
    bounds = [0, *sorted(cuts), table.num_rows]
    parts = [table.slice(a, b - a) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    assert merged(parts, table.schema) == merged([table], table.schema)


def test_large_manifests_have_row_groups_of_fixed_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_manifest, "MANIFEST_GROUP_ROWS", 1000)
    schema = pa.schema([("n", pa.int64())])
    parts = [pa.table({"n": range(i, i + 70)}, schema) for i in range(0, 2100, 70)]
    file = pq.ParquetFile(io.BytesIO(merged(parts, schema)))
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert counts == [1000, 1000, 100]
    assert file.read()["n"].to_pylist() == list(range(2100))


def test_no_rows_make_a_file_with_columns(rows: pa.RecordBatch) -> None:
    table = table_of(rows)
    read = pq.read_table(io.BytesIO(merged([], table.schema)))
    assert (read.num_rows, read.column_names) == (0, table.column_names)


def test_paths_of_the_machine_are_left_out(rows: pa.RecordBatch) -> None:
    table = table_of(rows)
    secret = {"path": "/home/somebody/a.tar", "offset": 0, "length": 1, "digest": bytes(16)}
    members = pa.array([[secret]] * table.num_rows, pa.list_(MEDIA_REF))
    wide = table.append_column("image_ref", pa.array([secret] * table.num_rows, MEDIA_REF))
    wide = wide.append_column("members", members)
    data = merged([wide], wide.schema)
    assert data == merged([table], table.schema)
    assert b"somebody" not in data


def test_pandas_and_duckdb_read_it(tars: Path, rows: pa.RecordBatch) -> None:
    path = str(tars / "manifest.parquet")
    frame = pd.read_parquet(path)
    assert list(frame["key"]) == rows["key"].to_pylist()
    assert list(frame["near_duplicates"][2]) == rows["near_duplicates"][2].as_py()
    query = f"SELECT uid, file FROM '{path}' WHERE width = 32 ORDER BY phash DESC LIMIT 1"
    found: Any = duckdb.sql(query).fetchall()
    assert found == [(uuid.UUID(bytes=rows["uid"][0].as_py()), "00000.tar")]


def test_every_leaf_is_compressed_but_the_payload(tars: Path, parquets: Path) -> None:
    def codecs(path: Path) -> dict[str, str]:
        group = pq.ParquetFile(path).metadata.row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        return {c.path_in_schema: c.compression for c in columns}

    assert set(codecs(tars / "manifest.parquet").values()) == {"ZSTD"}
    stored = codecs(parquets / "00000.parquet")
    assert {p for p, codec in stored.items() if codec != "ZSTD"} == {"image.bytes", "image.path"}


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6),
    st.integers(1, 4),
    st.integers(0, 20),
)
def test_row_groups_against_a_naive_loop(
    batches: list[list[int]], max_rows: int, max_bytes: int
) -> None:
    schema = pa.schema([("n", pa.int64())])
    arrow = [pa.record_batch([pa.array(b, pa.int64())], schema) for b in batches]
    groups = _manifest.row_groups(
        arrow, schema, max_rows, max_bytes, lambda batch: batch.column("n").to_pylist()
    )
    expected: list[list[int]] = []
    for value in (v for b in batches for v in b):
        last = expected[-1] if expected else None
        if last is None or len(last) >= max_rows or sum(last) + value > max_bytes:
            expected.append([])
        expected[-1].append(value)
    found = list(groups)
    assert [g.column("n").to_pylist() for g in found] == expected
    assert all(g.column("n").num_chunks == 1 for g in found)

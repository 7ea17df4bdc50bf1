"""Parquet files of a workspace: what is written is what is read, in bounded row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from winnow_shards import rows_table, uids

from winnow.contracts.media import MEDIA_REF
from winnow.pipeline import arrow_files
from winnow.pipeline.arrow_files import RowCursor, ShardWriter, from_file, is_payload, to_file

REF = {"path": "p", "offset": 0, "length": 1, "digest": b"d" * 16}


def write(path: Path, pieces: list[pa.Table], schema: pa.Schema | None = None) -> pq.ParquetFile:
    with open(path, "wb") as file:
        writer = ShardWriter(file, schema or pieces[0].schema)
        for piece in pieces:
            writer.write(piece)
        writer.close()
    return pq.ParquetFile(path)


def table(rows: int) -> pa.Table:
    return rows_table(
        uids(*range(rows)),
        {
            "text": pa.array([None if i % 3 == 0 else f"t{i}" for i in range(rows)]),
            "image": pa.array([bytes([i % 256]) * 100 for i in range(rows)], pa.large_binary()),
            "image_ref": pa.array([REF] * rows, MEDIA_REF),
            "near": pa.array([[b"n" * 16]] * rows, pa.list_(pa.binary(16))),
        },
    )


def test_what_is_written_is_what_is_read_and_uid_is_a_uuid_in_the_file(tmp_path: Path) -> None:
    whole = table(20)
    file = write(tmp_path / "f", [whole.slice(0, 7), whole.slice(7)])
    assert file.schema_arrow.field("uid").type == pa.uuid()
    assert from_file(file.read()).equals(whole)
    assert from_file(to_file(whole)).equals(whole)
    narrow = whole.select(["text"])
    assert to_file(narrow).equals(narrow)
    assert from_file(narrow).equals(narrow)


def test_a_record_batch_is_a_table_and_columns_come_in_the_order_of_the_schema(
    tmp_path: Path,
) -> None:
    whole = table(3)
    mixed = whole.select(["image", "text", "near", "uid", "image_ref"]).combine_chunks()
    with open(tmp_path / "f", "wb") as out:
        writer = ShardWriter(out, whole.schema)
        writer.write(mixed.to_batches()[0])
        writer.close()
    assert writer.num_rows == 3
    assert from_file(pq.read_table(tmp_path / "f")).equals(whole)


def test_no_rows_is_a_file_with_its_columns(tmp_path: Path) -> None:
    empty = table(1).slice(1)
    for pieces in ([], [empty]):
        file = write(tmp_path / "f", pieces, empty.schema)
        assert file.metadata.num_rows == 0
        assert from_file(file.read()).schema.equals(empty.schema)
        cursor = RowCursor(file, ["uid", "text"])
        assert cursor.num_rows == 0
        found = cursor.take(np.array([], np.int64))
        assert (found.num_rows, found.column_names) == (0, ["uid", "text"])
        assert found.schema.field("uid").type == pa.binary(16)


def test_row_groups_are_bounded_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_files, "ROW_GROUP_BYTES", 2000)
    whole = table(60)
    file = write(tmp_path / "f", [whole.slice(i, 4) for i in range(0, 60, 4)])
    groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sum(groups) == 60
    assert max(groups) <= 16
    assert len(groups) > 3


def test_media_are_stored_as_they_are(tmp_path: Path) -> None:
    file = write(tmp_path / "f", [table(10)])
    group = file.metadata.row_group(0)
    kinds = {
        group.column(i).path_in_schema: group.column(i).compression
        for i in range(group.num_columns)
    }
    assert kinds["image"] == "UNCOMPRESSED"
    assert kinds["text"] == "ZSTD"


@pytest.mark.parametrize(
    ("kind", "expected"), [(pa.large_binary(), True), (pa.binary(), False), (pa.string(), False)]
)
def test_a_payload_is_large_binary(kind: pa.DataType, expected: bool) -> None:
    assert is_payload(kind) is expected


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.data())
@settings(max_examples=40, deadline=None)
def test_a_cursor_takes_any_ascending_rows_across_row_groups(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], data: st.DataObject
) -> None:
    rows = sum(groups)
    whole = table(rows)
    path = tmp_path_factory.mktemp("cursor") / "f"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow_files, "ROW_GROUP_BYTES", 1)
        starts = np.cumsum([0, *groups[:-1]])
        pieces = [whole.slice(int(s), n) for s, n in zip(starts, groups, strict=True)]
        file = write(path, pieces)
    assert file.num_row_groups == len(groups)
    cursor = RowCursor(file, ["uid", "text", "image"])
    for _ in range(3):
        at = sorted(data.draw(st.sets(st.integers(0, rows - 1))))
        found = cursor.take(np.array(at, np.int64))
        expected = whole.select(["uid", "text", "image"]).take(pa.array(at, pa.int64()))
        assert found.to_pylist() == expected.to_pylist()

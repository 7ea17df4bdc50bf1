"""Reading a shard back: joined by position, checked by uid, patched, gated, by reference."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from winnow_shards import put_rows, put_table, rows_table, uids

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import content_digest
from winnow.contracts.media import MEDIA_REF
from winnow.filters._parse import parse_expression
from winnow.pipeline.columns import SOURCE, ColumnSet, ShardReader, overlay, read_range
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage

STAGE = pa.schema({"score": pa.int32(), "s_error": pa.string()})
ROWS = 8


class Workspace:
    """One shard with a number column, and stages whose files are written by hand."""

    def __init__(self, folder: Path, rows: int = ROWS) -> None:
        self.storage = Storage(str(folder))
        self.uid = uids(*range(rows))
        numbers = pa.array([None if i == 3 else i for i in range(rows)], pa.int32())
        source = rows_table(self.uid, {"n": numbers})
        self.shard: Shard = put_rows(self.storage, source)
        self.sets = [ColumnSet(writer=SOURCE, folder="rows", schema=source.schema.remove(0))]
        self.patches: dict[str, tuple[int, ...]] = {}

    def stage(self, key: str, scores: list[int | None], when: str = "", name: str = "") -> None:
        schema = STAGE if not name else pa.schema({name: pa.int32(), f"{key}_error": pa.string()})
        columns = ColumnSet(
            writer=key,
            folder=f"columns/{key}",
            schema=schema,
            when=parse_expression(when) if when else None,
        )
        errors = pa.nulls(len(scores), pa.string())
        made = rows_table(
            self.uid[: len(scores)],
            dict(zip(schema.names, [pa.array(scores, pa.int32()), errors], strict=True)),
        )
        put_table(self.storage, columns.file(self.shard), made)
        self.sets.append(columns)

    def patch(self, key: str, number: int, rows: dict[int, int | None]) -> None:
        columns = next(s for s in self.sets if s.writer == key)
        at = sorted(rows)
        made = rows_table(
            self.uid.take(pa.array(at, pa.int64())),
            {
                "score": pa.array([rows[i] for i in at], pa.int32()),
                "s_error": pa.array([None if rows[i] is not None else "again" for i in at]),
            },
        )
        made = made.add_column(0, pa.field("row", pa.int32()), pa.array(at, pa.int32()))
        put_table(self.storage, columns.file(self.shard, f"r{number}"), made)
        self.patches[key] = (*self.patches.get(key, ()), number)

    def reader(self) -> ShardReader:
        return ShardReader(self.storage, self.sets, self.shard, self.patches)


def test_files_are_joined_by_position(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    ws.stage("s", [10 * i for i in range(ROWS)])
    found = ws.reader().take(["score", "n"], np.array([1, 3, 6]))
    assert found.column_names == ["uid", "score", "n"]
    assert found.column("uid").to_pylist() == [ws.uid[i].as_py() for i in (1, 3, 6)]
    assert found.column("score").to_pylist() == [10, 30, 60]
    assert found.column("n").to_pylist() == [1, None, 6]
    assert ws.reader().read(["n"]).num_rows == ROWS
    assert ws.reader().take([], np.array([2])).column_names == ["uid"]
    assert ws.reader().take(["score"], np.array([], np.int64)).num_rows == 0


@pytest.mark.parametrize("swap", [(0, 1), (3, 7)])
def test_files_that_do_not_belong_together_are_refused(
    tmp_path: Path, swap: tuple[int, int]
) -> None:
    ws = Workspace(tmp_path)
    order = list(range(ROWS))
    order[swap[0]], order[swap[1]] = swap[1], swap[0]
    ws.uid = ws.uid.take(pa.array(order))
    ws.stage("s", [0] * ROWS)
    with pytest.raises(ShardError, match="do not belong to the same rows") as caught:
        ws.reader().read(["score"])
    assert (caught.value.stage, caught.value.shard) == ("s", ws.shard.id)
    assert not caught.value.retryable


def test_a_file_with_fewer_rows_is_refused(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    ws.stage("s", [0] * (ROWS - 1))
    with pytest.raises(ShardError, match="do not belong to the same rows"):
        ws.reader().read(["score"])


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    ws.stage("s", [0] * ROWS)
    path = Path(ws.storage.path(ws.sets[-1].file(ws.shard)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ShardError, match=r"columns/s/\w+.parquet is damaged .* remove it and run"):
        ws.reader().read(["score"])


@given(
    st.lists(st.dictionaries(st.integers(0, ROWS - 1), st.none() | st.integers(0, 99)), max_size=4),
    st.sets(st.integers(0, ROWS - 1)),
)
@settings(max_examples=30, deadline=None)
def test_patches_are_laid_over_in_order(
    tmp_path_factory: pytest.TempPathFactory,
    patches: list[dict[int, int | None]],
    wanted: set[int],
) -> None:
    ws = Workspace(tmp_path_factory.mktemp("ws"))
    expected: list[int | None] = [-i for i in range(ROWS)]
    ws.stage("s", list(expected))
    for number, rows in enumerate(patches, 1):
        ws.patch("s", number * 3, rows)
        for row, value in rows.items():
            expected[row] = value
    at = sorted(wanted)
    reader = ws.reader()
    found = reader.take(["score", "n"], np.array(at, np.int64))
    assert found.column("score").to_pylist() == [expected[i] for i in at]
    assert found.column("n").to_pylist() == [None if i == 3 else i for i in at]
    assert reader.stored("s", "score").to_pylist() == expected
    for number, rows in enumerate(patches, 1):
        assert reader.patch_rows("s", number * 3).tolist() == sorted(rows)


def test_rows_outside_a_gate_are_null_with_a_code_whatever_was_computed(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    ws.stage("s", list(range(ROWS)), when="n >= 2 and n < 6")
    found = ws.reader().read(["score", "s_error"])
    inside = {2, 4, 5}  # n of row 3 is null, which is not true
    assert found.column("score").to_pylist() == [i if i in inside else None for i in range(ROWS)]
    assert found.column("s_error").to_pylist() == [
        None if i in inside else "not_selected" for i in range(ROWS)
    ]
    assert ws.reader().stored("s", "score").to_pylist() == list(range(ROWS))
    assert ws.reader().gate(parse_expression("n > 5"), np.array([5, 6])).tolist() == [False, True]


def test_a_gate_on_a_gated_column_sees_it_gated(tmp_path: Path) -> None:
    ws = Workspace(tmp_path)
    ws.stage("s", list(range(ROWS)), when="n >= 4")
    ws.stage("t", list(range(ROWS)), when="score < 6", name="after")
    assert ws.reader().read(["after"]).column("after").to_pylist() == [
        *[None] * 4,
        4,
        5,
        None,
        None,
    ]


def media(folder: Path, datas: list[bytes]) -> tuple[Workspace, Path]:
    path = folder / "media.bin"
    path.write_bytes(b"".join(datas))
    ws = Workspace(folder / "ws", rows=len(datas))
    starts = np.cumsum([0, *(len(d) for d in datas)])
    references: list[dict[str, Any] | None] = [
        {"path": str(path), "offset": int(s), "length": len(d), "digest": content_digest(d)}
        for s, d in zip(starts, datas, strict=False)
    ]
    references[1] = None
    table = rows_table(ws.uid, {"image_ref": pa.array(references, MEDIA_REF)})
    ws.shard = put_rows(ws.storage, table)
    ws.sets = [
        ColumnSet(writer=SOURCE, folder="rows", schema=table.schema.remove(0), virtual=("image",))
    ]
    return ws, path


def test_virtual_payloads_are_read_by_reference(tmp_path: Path) -> None:
    datas = [b"first", b"none", b"", b"last" * 1000]
    ws, path = media(tmp_path, datas)
    found = ws.reader().read(["image"])
    assert found.schema.field("image").type == pa.large_binary()
    assert found.column("image").to_pylist() == [datas[0], None, b"", datas[3]]
    both = ws.reader().take(["image", "image_ref"], np.array([3]))
    assert both.column("image_ref").to_pylist()[0]["length"] == 4000
    path.write_bytes(b"FIRST" + path.read_bytes()[5:])
    assert ws.reader().read(["image"]).column("image").to_pylist() == [None, None, b"", datas[3]]
    path.write_bytes(b"first")
    assert ws.reader().read(["image"]).column("image").to_pylist() == [b"first", None, b"", None]
    path.unlink()
    assert ws.reader().read(["image"]).column("image").to_pylist() == [None] * 4


def test_ranges_are_read_from_any_file_system(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "f").write_bytes(b"0123456789")
    fsspec.filesystem("memory").pipe_file("/winnow/f", b"0123456789")
    for path in (str(tmp_path / "f"), f"file://{tmp_path}/f", "memory://winnow/f"):
        assert read_range(path, 2, 3) == b"234"
    assert read_range(str(tmp_path / "gone"), 0, 1) is None
    assert read_range("memory://winnow/gone", 0, 1) is None


def test_overlay_replaces_rows(tmp_path: Path) -> None:
    base = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    patch = pa.table({"a": [9, 8], "b": [None, "w"]}, schema=base.schema)
    found = overlay(base, patch, np.array([2, 0]))
    assert found.to_pylist() == [
        {"a": 8, "b": "w"},
        {"a": 2, "b": "y"},
        {"a": 9, "b": None},
    ]


def test_a_range_is_read_whole_however_little_one_call_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux gives 2 GiB at a time; here it gives 3 bytes."""
    whole = os.pread
    path = tmp_path / "f"
    path.write_bytes(b"0123456789")
    monkeypatch.setattr(os, "pread", lambda file, n, at: whole(file, min(n, 3), at))
    assert read_range(str(path), 1, 8) == b"12345678"
    assert read_range(str(path), 8, 5) == b"89"
    assert read_range(str(path), 3, 0) == b""

"""Input shards: cut by rows, named by content alone."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from winnow_shards import rows_table, uids

from winnow.contracts.errors import ShardError
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.source import Source, SourceFile
from winnow.contracts.stage import WorkerOptions
from winnow.pipeline.arrow_files import from_file
from winnow.pipeline.shards import IngestUnit, Shard, list_shards, table_digest
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import WorkerContext

FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
REF = {"path": "p", "offset": 1, "length": 2, "digest": b"0" * 16}
VALUES: dict[str, tuple[pa.DataType, Any, Any]] = {
    "string": (pa.string(), "a", "b"),
    "empty string": (pa.string(), "", "a"),
    "large_string": (pa.large_string(), "a", "b"),
    "binary": (pa.binary(), b"a", b"b"),
    "large_binary": (pa.large_binary(), b"a", b"b"),
    "fixed": (pa.binary(2), b"ab", b"ac"),
    "int8": (pa.int8(), 0, 1),
    "int64": (pa.int64(), 2**53, 2**53 + 1),
    "uint64": (pa.uint64(), 2**64 - 1, 2**64 - 2),
    "float32": (pa.float32(), 0.5, 0.25),
    "float64": (pa.float64(), 0.0, -0.0),
    "bool": (pa.bool_(), False, True),
    "list": (pa.list_(pa.string()), ["a"], []),
    "struct": (MEDIA_REF, REF, REF | {"offset": 2}),
    "date": (pa.date32(), dt.date(2020, 1, 1), dt.date(2020, 1, 2)),
    "timestamp": (pa.timestamp("us"), dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 2)),
    "nanoseconds": (pa.timestamp("ns"), 1, 2),
    "decimal": (pa.decimal128(10, 2), decimal.Decimal("1.00"), decimal.Decimal("1.01")),
}


def table(kind: pa.DataType, values: list[Any], name: str = "c") -> pa.Table:
    return rows_table(uids(*range(len(values))), {name: pa.array(values, kind)})


@pytest.mark.parametrize("name", VALUES)
def test_any_value_any_null_and_any_place_changes_the_id(name: str) -> None:
    kind, one, other = VALUES[name]
    rows = [[one, one], [one, other], [other, one], [one, None], [None, one], [None, None], [one]]
    found = [table_digest(table(kind, r)) for r in rows]
    assert len(set(found)) == len(rows)
    assert table_digest(table(kind, [one, other])) == found[1]


def test_names_types_order_and_uids_change_the_id() -> None:
    base = rows_table(uids(1), {"a": pa.array([1], pa.int32()), "b": pa.array([1], pa.int32())})
    others = [
        base.rename_columns(["uid", "a", "c"]),
        base.set_column(2, "b", pa.array([1], pa.int64())),
        base.select(["uid", "b", "a"]),
        base.drop_columns(["b"]),
        base.set_column(0, "uid", uids(2)),
    ]
    assert len({table_digest(t) for t in [base, *others]}) == 6


def test_text_cannot_move_from_one_row_or_column_to_the_next() -> None:
    tables = [
        rows_table(uids(1, 2), {"a": pa.array(a), "b": pa.array(b)})
        for a, b in [(["ab", "c"], ["", "d"]), (["a", "bc"], ["", "d"]), (["ab", ""], ["c", "d"])]
    ]
    assert len({table_digest(t) for t in tables}) == 3


@st.composite
def cut_tables(draw: st.DrawFn) -> tuple[pa.Table, list[int]]:
    rows = draw(st.integers(1, 12))
    one = draw(st.sampled_from(sorted(VALUES)))
    kind, *choices = VALUES[one]
    values = draw(st.lists(st.sampled_from([*choices, None]), min_size=rows, max_size=rows))
    texts = draw(st.lists(st.none() | st.text(max_size=3), min_size=rows, max_size=rows))
    texts = [t.encode("utf-8", "ignore").decode() if t else t for t in texts]
    made = rows_table(
        uids(*range(rows)), {"c": pa.array(values, kind), "t": pa.array(texts, pa.string())}
    )
    return made, sorted(draw(st.lists(st.integers(0, rows), max_size=4)))


@given(cut_tables())
@FEW
def test_the_id_does_not_depend_on_chunks_slices_and_offsets(drawn: tuple[Any, list[int]]) -> None:
    whole, cuts = drawn
    edges = [0, *cuts, whole.num_rows]
    pieces = [whole.slice(a, b - a) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    padded = pa.concat_tables([whole, whole]).combine_chunks()
    expected = table_digest(whole)
    assert table_digest(pa.concat_tables(pieces)) == expected
    assert table_digest(padded.slice(whole.num_rows)) == expected
    assert table_digest(padded.slice(0, whole.num_rows)) == expected


@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed(Source):
    """Gives a table in batches that somebody else chose."""

    rows: tuple[tuple[str | None, ...], ...] = ()
    names: tuple[str, ...] = field(default=("text",))
    name = "fixed"
    version = 1

    def files(self) -> list[SourceFile]:
        return [SourceFile(path="p", name="n", token="t")]

    def schema(self) -> pa.Schema:
        return pa.schema({"text": pa.string()})

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        for batch in self.rows:
            made = rows_table(uids(*batch), {self.names[0]: pa.array(batch, pa.string())})
            yield from made.combine_chunks().to_batches() or [
                pa.RecordBatch.from_arrays([uids(), pa.array([], pa.string())], schema=made.schema)
            ]


def ingest(folder: Path, source: Fixed, rows_per_shard: int) -> tuple[Storage, list[Shard]]:
    storage = Storage(str(folder))
    (file,) = source.files()
    unit = IngestUnit(
        storage=storage,
        source=source,
        file=file,
        rows_per_shard=rows_per_shard,
        index_name="rows/_files/one.json",
    )
    unit.run(WorkerContext(WorkerOptions(), folder))
    return storage, list_shards(storage, ["rows/_files/one.json"])


@given(
    st.lists(st.lists(st.none() | st.sampled_from("abc"), max_size=5), max_size=5),
    st.integers(1, 4),
)
@FEW
def test_shards_are_cut_by_rows_and_not_by_batches(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[str | None]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("ws")
    source = Fixed(rows=tuple(tuple(b) for b in batches))
    storage, shards = ingest(folder / "a", source, size)
    rows = [r for b in batches for r in b]
    expected = [rows[i : i + size] for i in range(0, len(rows), size)]
    read = [
        from_file(storage.parquet(f"rows/{s.content_id}.parquet").read()).column("text").to_pylist()
        for s in shards
    ]
    assert read == expected
    assert [s.num_rows for s in shards] == [len(e) for e in expected]
    assert [s.first_row for s in shards] == [size * i for i in range(len(expected))]
    _, again = ingest(folder / "b", Fixed(rows=(tuple(rows),)), size)
    assert [(s.id, s.content_id) for s in again] == [(s.id, s.content_id) for s in shards]


def test_equal_content_is_told_apart_by_its_place(tmp_path: Path) -> None:
    _, shards = ingest(tmp_path, Fixed(rows=(("a", "b", "a", "b", "a", "b", "c"),)), 2)
    first = shards[0].content_id
    assert [s.id for s in shards[:3]] == [first, f"{first}~1", f"{first}~2"]
    assert [s.content_id for s in shards[:3]] == [first] * 3
    assert shards[3].id == shards[3].content_id != first


def test_a_source_that_gives_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"gave columns \['uid', 'x'\], not \['uid', 'text'\]"):
        ingest(tmp_path, Fixed(rows=(("a",),), names=("x",)), 2)
    assert not (tmp_path / "rows" / "_files").exists()


def test_the_index_says_what_the_file_became(tmp_path: Path) -> None:
    storage, shards = ingest(tmp_path, Fixed(rows=(("a", "b", "c"),)), 2)
    entry = json.loads(storage.read("rows/_files/one.json"))
    assert entry["rows"] == 3
    assert entry["file"] == {"path": "p", "name": "n", "token": "t"}
    assert [s["rows"] for s in entry["shards"]] == [2, 1]
    assert {s.file for s in shards} == {"n"}

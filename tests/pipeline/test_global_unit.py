"""A stage over all rows: every shard written, ``_stage.json`` last."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from winnow_shards import Killed, kill_at, put_rows, rows_table, snapshot, uids, write_jsonl

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, GlobalStage, WorkerOptions
from winnow.pipeline.arrow_files import from_file
from winnow.pipeline.columns import SOURCE, ColumnSet
from winnow.pipeline.global_unit import GlobalUnit
from winnow.pipeline.run import RunReport
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import WorkerContext

Runner = Callable[..., RunReport]


@dataclass(frozen=True, kw_only=True, slots=True)
class Place(GlobalStage):
    """Writes the place of a row in the whole pool; ``how`` is what goes wrong."""

    how: str = ""
    reads = pa.schema({"text": pa.string()})
    writes = pa.schema({"place": pa.int64(), "pool": pa.int64()})

    def compute(self, inputs: GlobalInputs, outputs: GlobalOutputs) -> Mapping[str, Any]:
        (inputs.scratch / "spill").write_bytes(b"x")
        rows = sum(t.num_rows for _, t in inputs.tables())
        start = 0
        for number, (shard, table) in enumerate(inputs.tables()):
            assert table.column_names == ["uid", "text"]
            count = table.num_rows - (self.how == "short")
            if self.how == "forgets" and number:
                continue
            if self.how == "raises" and number:
                raise ValueError("half-way")
            places = pa.array(range(start, start + count), pa.int64())
            pool = pa.array([rows] * count, pa.int64())
            outputs.write(shard, pa.table({"pool": pool, "place": places}))
            start += table.num_rows
        return {"rows": rows, "note": "text", "share": 0.5}


def unit(folder: Path, how: str = "", cuts: tuple[int, ...] = (3, 1, 2)) -> GlobalUnit:
    storage, shards, start = Storage(str(folder)), [], 0
    for count in cuts:
        names = range(start, start + count)
        table = rows_table(uids(*names), {"text": pa.array([f"t{i}" for i in names])})
        shards.append(put_rows(storage, table, start))
        start += count
    return GlobalUnit(
        storage=storage,
        key="place",
        stage=Place(how=how),
        columns=ColumnSet(
            writer="place", folder="columns/place", schema=Place().writes, placed=True
        ),
        sets=(ColumnSet(writer=SOURCE, folder="rows", schema=pa.schema({"text": pa.string()})),),
        shards=tuple(shards),
        record={"stage": "place"},
    )


def context(folder: Path) -> WorkerContext:
    folder.mkdir(exist_ok=True)
    return WorkerContext(WorkerOptions(), folder)


def test_every_shard_gets_its_rows_with_their_uids(tmp_path: Path) -> None:
    made = unit(tmp_path / "ws")
    result = made.run(context(tmp_path / "scratch"))
    found = [
        from_file(made.storage.parquet(f"columns/place/{s.id}.parquet").read()) for s in made.shards
    ]
    assert [t.column("place").to_pylist() for t in found] == [[0, 1, 2], [3], [4, 5]]
    assert pa.concat_tables(found).column("uid").to_pylist() == uids(*range(6)).to_pylist()
    assert found[0].column_names == ["uid", "place", "pool"]
    record = json.loads(made.storage.read("columns/place/_stage.json"))
    assert record == {"stage": "place", "counters": {"rows": 6, "note": "text", "share": 0.5}}
    assert result.rows == 6
    assert result.counters == {"place": {"rows": 6.0, "share": 0.5}}
    assert list((tmp_path / "scratch").iterdir()) == []


def test_no_shard_is_no_work(tmp_path: Path) -> None:
    made = unit(tmp_path / "ws", cuts=())
    assert made.run(context(tmp_path / "scratch")).rows == 0
    assert made.storage.exists("columns/place/_stage.json")


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("short", ShardError, "place gave 2 rows for 3"),
        ("forgets", ShardError, "place wrote nothing for 2 shards"),
        ("raises", ValueError, "half-way"),
    ],
)
def test_what_is_not_whole_is_not_committed(
    tmp_path: Path, how: str, error: type[Exception], message: str
) -> None:
    made = unit(tmp_path / "ws", how)
    with pytest.raises(error, match=message):
        made.run(context(tmp_path / "scratch"))
    assert not made.storage.exists("columns/place/_stage.json")
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_killed_attempt_starts_again_and_writes_the_same_files(tmp_path: Path) -> None:
    clean = unit(tmp_path / "clean")
    clean.run(context(tmp_path / "scratch"))
    for commit in range(4):
        made = unit(tmp_path / f"k{commit}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, commit)
            made.run(context(tmp_path / "scratch"))
        assert not made.storage.exists("columns/place/_stage.json")
        made.run(context(tmp_path / "scratch"))
        assert snapshot(tmp_path / f"k{commit}") == snapshot(tmp_path / "clean")


def test_equal_shards_have_columns_of_their_own(run: Runner, tmp_path: Path) -> None:
    """Rows of two equal files differ in what the pool says of them."""
    for name in "ab":
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", ["x", "y", "z"])
    report = run(
        f"""
name: g
source: {{use: url_table, path: '{tmp_path / "in"}'}}
stages: {{repeated_rows: , toy_length: }}
filters:
  drop_repeated_rows: {{on_null: drop}}
"""
    )
    assert (report.summary["rows"], report.summary["kept"]) == (6, 3)
    assert report.summary["kept_per_shard"] == [3, 0]
    assert len(list((tmp_path / "ws").glob("columns/toy_length-*/*.parquet"))) == 1
    assert len(list((tmp_path / "ws").glob("columns/repeated_rows-*/*.parquet"))) == 2


@pytest.mark.parametrize("key", ["a/b", "x" * 300])
def test_a_stage_may_have_any_name(tmp_path: Path, key: str) -> None:
    made = dataclasses.replace(unit(tmp_path / "ws"), key=key)
    assert made.run(context(tmp_path / "scratch")).rows == 6
    assert list((tmp_path / "scratch").iterdir()) == []

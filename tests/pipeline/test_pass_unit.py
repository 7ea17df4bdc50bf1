"""A pass on one shard: what is committed, in which order, and from where it can go on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from winnow_shards import Killed, kill_at, put_rows, put_table, rows_table, uids, write_jsonl
from winnow_toy import ToyBatch, ToyDouble, ToyLength, ToyRaise

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import Stage, WorkerOptions
from winnow.filters._parse import parse_expression
from winnow.pipeline.arrow_files import ShardWriter, from_file
from winnow.pipeline.columns import SOURCE, ColumnSet
from winnow.pipeline.pass_unit import PassUnit, StageTask
from winnow.pipeline.run import RunReport
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import (
    Breadcrumb,
    Suspects,
    UnitResult,
    WorkerContext,
    as_shard_error,
)

Runner = Callable[..., RunReport]
TEXTS = ["a", "bb", None, "dddd", "eeeee", "ffffff", "ggggggg"]


@dataclass
class Bench:
    """One shard of texts and units on it."""

    storage: Storage
    shard: Shard
    source: ColumnSet
    scratch: Path

    def task(self, key: str, stage: Stage, when: str = "", marker: str | None = None) -> StageTask:
        columns = ColumnSet(
            writer=key,
            folder=f"columns/{key}",
            schema=stage.writes,
            when=parse_expression(when) if when else None,
        )
        return StageTask(key=key, stage=stage, columns=columns, marker=marker)

    def unit(self, *tasks: StageTask, **more: Any) -> PassUnit:
        sets = (self.source, *(t.columns for t in tasks))
        values: dict[str, Any] = {"patches": {}, "chunk_rows": 4} | more
        return PassUnit(storage=self.storage, shard=self.shard, sets=sets, tasks=tasks, **values)

    def run(self, unit: PassUnit, crumb: Breadcrumb | None = None) -> UnitResult:
        return unit.run(WorkerContext(WorkerOptions(), self.scratch, crumb))

    def read(self, name: str) -> list[dict[str, Any]]:
        table = from_file(pq.read_table(self.storage.path(f"columns/{name}")))
        rows: list[dict[str, Any]] = table.drop_columns(["uid"]).to_pylist()
        return rows

    def files(self) -> list[str]:
        root = Path(self.storage.path(""))
        content = self.shard.content_id
        return sorted(
            str(p.relative_to(root)).replace(content, "S") for p in root.glob("columns/*/*")
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    storage = Storage(str(tmp_path / "ws"))
    table = rows_table(uids(*range(len(TEXTS))), {"text": pa.array(TEXTS)})
    source = ColumnSet(writer=SOURCE, folder="rows", schema=table.schema.remove(0))
    return Bench(storage, put_rows(storage, table), source, tmp_path)


def test_all_stages_of_a_pass_see_each_other_and_commit_a_file_each(bench: Bench) -> None:
    unit = bench.unit(bench.task("l", ToyLength()), bench.task("d", ToyDouble()))
    result = bench.run(unit)
    lengths = [None if t is None else len(t) for t in TEXTS]
    assert [r["num_letters"] for r in bench.read(f"l/{bench.shard.id}.parquet")] == lengths
    doubled = bench.read(f"d/{bench.shard.id}.parquet")
    assert [r["doubled"] for r in doubled] == [None if n is None else 2 * n for n in lengths]
    assert (result.rows, result.lost, result.committed) == (7, False, (("l", ""), ("d", "")))
    assert result.counters["l"]["rows"] == 7
    assert result.counters["l"]["error:empty"] == 1
    assert bench.files() == ["columns/d/S.parquet", "columns/l/S.parquet"]
    assert unit.label == f"l, d on shard {bench.shard.id} (f)"


@pytest.mark.parametrize(("rows", "chunk"), [(1, 1), (2, 4), (4, 4), (3, 6)])
def test_batches_are_cut_at_fixed_places(bench: Bench, rows: int, chunk: int) -> None:
    bench.run(bench.unit(bench.task("b", ToyBatch(rows=rows)), chunk_rows=chunk))
    found = [r["batch"] for r in bench.read(f"b/{bench.shard.id}.parquet")]
    expected = [min(rows, len(TEXTS) - start) for start in range(0, len(TEXTS), rows)]
    assert found == [n for n in expected for _ in range(n)]


def test_a_gate_leaves_nulls_with_a_code_and_a_marker(bench: Bench) -> None:
    (bench.scratch / "log").touch()
    stage = ToyLength(log=str(bench.scratch / "log"))
    result = bench.run(bench.unit(bench.task("l", stage, "length(text) > 4", "gabc")))
    rows = bench.read(f"l/{bench.shard.id}.parquet")
    assert [r["num_letters"] for r in rows] == [*[None] * 4, 5, 6, 7]
    assert [r["toy_length_error"] for r in rows] == [*["not_selected"] * 4, None, None, None]
    assert (bench.scratch / "log").read_text() == "toy_length 3\n"
    assert result.committed == (("l", ""), ("l", "gabc"))
    assert bench.files() == [f"columns/l/S{s}.parquet" for s in (".gabc", ".gated", "")]


def test_a_gate_that_selects_nothing_is_a_whole_file(bench: Bench) -> None:
    bench.run(bench.unit(bench.task("l", ToyLength(), "length(text) > 40", "g1")))
    rows = bench.read(f"l/{bench.shard.id}.parquet")
    assert [r["toy_length_error"] for r in rows] == ["not_selected"] * 7


def test_a_widened_gate_patches_only_what_it_adds(bench: Bench) -> None:
    bench.run(bench.unit(bench.task("l", ToyLength(), "length(text) > 5", "g1")))
    wide = bench.task("l", ToyLength(), "length(text) > 3", "g2")
    result = bench.run(bench.unit(wide, mode="gate", number=65537))
    patch = bench.read(f"l/{bench.shard.id}.r65537.parquet")
    assert [(r["row"], r["num_letters"]) for r in patch] == [(3, 4), (4, 5)]
    assert result.committed == (("l", "r65537"), ("l", "g2"))
    again = bench.run(bench.unit(wide, mode="gate", number=65538, patches={"l": (65537,)}))
    assert (again.rows, again.committed) == (0, (("l", "g2"),))


def test_the_loser_of_a_commit_throws_away_what_it_derived(bench: Bench) -> None:
    other = rows_table(
        uids(*range(7)),
        {"num_letters": pa.array([100] * 7, pa.int32()), "e": pa.nulls(7, pa.string())},
    ).rename_columns(["uid", "num_letters", "toy_length_error"])
    put_table(bench.storage, f"columns/l/{bench.shard.id}.parquet", other)
    unit = bench.unit(bench.task("l", ToyLength()), bench.task("d", ToyDouble()))
    result = bench.run(unit)
    assert result.lost
    assert result.committed == (("l", ""), ("l", "gated"))
    assert bench.files() == ["columns/l/S.parquet"]
    assert bench.read(f"l/{bench.shard.id}.parquet")[0]["num_letters"] == 100


def test_poisoned_rows_are_not_shown_to_the_stage(bench: Bench) -> None:
    unit = bench.unit(bench.task("r", ToyRaise(guilty=("bb", "ffffff"))))
    with pytest.raises(ValueError, match="no way to annotate bb"):
        bench.run(unit)
    assert bench.files() == []
    healed = unit.without("r", (5,)).without("r", (1,))
    assert healed.poisoned == {"r": (1, 5)}
    bench.run(healed)
    rows = bench.read(f"r/{bench.shard.id}.parquet")
    codes = ["crashed_worker" if i in (1, 5) else None for i in range(7)]
    assert [r["toy_raise_error"] for r in rows] == codes
    assert [r["fine"] for r in rows] == [None if c else True for c in codes]


def test_suspects_run_alone_and_write_nothing(bench: Bench) -> None:
    log = bench.scratch / "log"
    crumb = Breadcrumb(bench.scratch / "crumb")
    unit = bench.unit(
        bench.task("r", ToyRaise(guilty=("eeeee",), log=str(log))), bench.task("l", ToyLength())
    )
    with pytest.raises(ValueError, match="eeeee"):
        bench.run(unit.isolating(Suspects("r", 3, 6)), crumb)
    assert Breadcrumb.read(crumb.path) == Suspects("r", 4, 5)
    assert log.read_text() == "toy_raise 1\n" * 2
    assert bench.run(unit.without("r", (4,)).isolating(Suspects("r", 3, 6)), crumb).rows == 3
    assert bench.files() == []


def test_a_stage_that_breaks_its_contract_fails_for_good(bench: Bench) -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Short(ToyLength):
        def annotate(self, batch: pa.RecordBatch, state: Any, media: Any) -> pa.RecordBatch:
            return ToyLength.annotate(self, batch.slice(1), state, media)

    with pytest.raises(ShardError, match="s gave 3 rows of .* for 4 rows") as caught:
        bench.run(bench.unit(bench.task("s", Short())))
    assert not caught.value.retryable
    assert list(Path(bench.storage.path("columns")).rglob("*.parquet")) == []


GATED = """
name: t
rows_per_shard: 9
source: {{use: url_table, path: '{path}'}}
stages:
  toy_length: {{{gate}}}
  toy_double: {{}}
  toy_rank: {{}}
filters:
  some: {{use: where, expression: "doubled >= 4 and rank >= 0", on_null: drop}}
"""


def test_a_gated_run_killed_at_any_commit_loses_no_row_to_the_next_recipe(
    run: Runner, tmp_path: Path
) -> None:
    """After the kill the gate is taken away: rows that it left must be annotated."""
    path = write_jsonl(tmp_path / "in.jsonl", ["x" * n for n in range(1, 9)])
    gated = GATED.format(path=path, gate="""when: "text != 'xxx' and length(text) < 6" """)
    plain = GATED.format(path=path, gate="")
    expected = [run(t, workspace=str(tmp_path / f"clean{i}")) for i, t in enumerate((gated, plain))]
    killed, ended = 0, False
    while not ended:
        workspace = tmp_path / f"k{killed}"
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, killed)
            try:
                run(gated, workspace=str(workspace))
                ended = True
            except Killed:
                pass
        found = [run(t, workspace=str(workspace)) for t in (plain, gated)][::-1]
        for one, other in zip(found, expected, strict=True):
            assert one.summary["kept"] == other.summary["kept"], f"killed at {killed}"
        killed += 1
    assert [e.summary["kept"] for e in expected] == [3, 7]
    assert killed > 10


@pytest.mark.filterwarnings("error")
def test_ctrl_c_at_any_line_comes_out_and_leaves_no_temporary_file(
    bench: Bench,
) -> None:
    modules = {sys.modules[m].__file__ for m in (PassUnit.__module__, ShardWriter.__module__)}
    lines = [0, -1]

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in modules:
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == lines[1]:
                raise KeyboardInterrupt
        return trace

    def traced(key: str, stop: int) -> UnitResult | ShardError:
        unit = bench.unit(bench.task(key, ToyLength(), "length(text) > 2"))
        lines[:] = [0, stop]
        sys.settrace(trace)
        try:
            return bench.run(unit)
        except Exception as error:  # noqa: BLE001 - as the executors do
            return as_shard_error(error)
        finally:
            sys.settrace(None)

    assert isinstance(traced("whole", -1), UnitResult)
    for number in range(1, lines[0] + 1):
        with pytest.raises(KeyboardInterrupt):
            traced(f"n{number}", number)
        assert bench.storage.temporaries() == []
    assert number > 100


def test_a_file_that_is_still_being_made_does_not_look_old(bench: Bench) -> None:
    """Rows wait for a row group; `winnow gc` takes what nobody has written to for an hour."""
    seen: list[float] = []

    def age(rows: int) -> None:
        for name in bench.storage.temporaries():
            path = Path(bench.storage.path(name))
            seen.append(path.stat().st_mtime)
            os.utime(path, (1, 1))

    unit = bench.unit(bench.task("l", ToyLength()), chunk_rows=1)
    unit.run(WorkerContext(WorkerOptions(), bench.scratch, progress=age))
    assert len(seen) == len(TEXTS)
    assert min(seen) > 1

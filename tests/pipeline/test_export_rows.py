"""Rows on their way into an export, against plain lists and a plain sort."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from winnow_exports import pictures, recipe

from winnow.contracts.identity import row_uid, stable_hash64
from winnow.contracts.stage import WorkerOptions
from winnow.pipeline.export_plan import ExportPlan, plan_export
from winnow.pipeline.export_rows import (
    WRITE_ROWS,
    ExportJob,
    Place,
    Spool,
    gather,
    payload_batches,
    span_names,
    with_spans,
)
from winnow.pipeline.recipe import parse_recipe
from winnow.pipeline.run import RunOptions, RunReport, run_recipe
from winnow.pipeline.units import WorkerContext
from winnow.pipeline.work import State

PAYLOADS = st.lists(st.none() | st.binary(max_size=9), max_size=8)
REPEATS = {11: 8, 12: 8, 30: 8, 31: 9}


def test_a_spool_reads_on_where_the_system_reads_less_than_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux gives 2 GiB at a time; here it gives 3 bytes."""
    whole = os.pread
    values = [b"0123456789", b"", b"ab", None]
    spool = Spool(tmp_path)
    spans = spool.add(pa.chunked_array([pa.array(values, pa.large_binary())]))
    monkeypatch.setattr(os, "pread", lambda file, n, at: whole(file, min(n, 3), at))
    assert spool.read(spans[:, 0], spans[:, 1]).to_pylist() == values
    with pytest.raises(OSError, match="ends 5 bytes early"):
        spool.read(spans[2:3, 0], np.array([7]))


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(PAYLOADS, max_size=4), st.randoms(use_true_random=False))
def test_a_spool_gives_back_what_was_put_in(
    tmp_path: Path, added: list[list[bytes | None]], chance: random.Random
) -> None:
    spool = Spool(tmp_path)
    parts = []
    for values in added:
        cut = chance.randint(0, len(values))
        chunks = [pa.array(part, pa.large_binary()) for part in (values[:cut], values[cut:])]
        spans = spool.add(pa.chunked_array(chunks, pa.large_binary()))
        assert spans.shape == (len(values), 2)
        parts.append(spans)
    stored = [value for values in added for value in values]
    spans = np.concatenate([*parts, np.empty((0, 2), np.int64)]).astype(np.int64)
    nulls = [tuple(span) == (-1, -1) for span in spans.tolist()]
    assert nulls == [value is None for value in stored]
    order = chance.choices(range(len(stored)), k=12) if stored else []
    found = spool.read(spans[order, 0], spans[order, 1])
    assert found.type == pa.large_binary()
    assert found.to_pylist() == [stored[i] for i in order]
    spool.close()
    assert list(tmp_path.iterdir()) == []


def test_a_slice_of_a_column_is_stored_as_it_is_seen(tmp_path: Path) -> None:
    values = [b"zero", None, b"", b"three", b"four"]
    spool = Spool(tmp_path)
    spans = spool.add(pa.chunked_array([pa.array(values, pa.large_binary()).slice(1, 3)]))
    assert spool.read(spans[:, 0], spans[:, 1]).to_pylist() == values[1:4]
    spool.close()


def test_spans_are_two_columns_behind_the_others() -> None:
    table = pa.table({"uid": ["a", "b"], "n": [1, 2]})
    found = with_spans(table, "image", np.array([[0, 5], [-1, -1]]))
    assert found.column_names == ["uid", "n", *span_names("image")]
    assert found.select(["uid", "n"]).equals(table)
    assert [found.column(name).to_pylist() for name in span_names("image")] == [[0, -1], [5, -1]]
    assert not set(span_names("image")) & set(span_names("audio"))


class Export:
    """The plan of an export of 40 pictures, and what was put in."""

    def __init__(self, state: State, plan: ExportPlan, rows: list[dict[str, Any]]) -> None:
        self.state, self.job, self.rows = state, plan.job, rows

    @property
    def sources(self) -> list[tuple[Any, Any]]:
        return [(s, self.state.all_patches(s.id)) for s in self.state.shards]

    def at(self, place: Place) -> dict[str, Any]:
        return self.rows[self.state.shards[place[2]].first_row + place[3]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    folder = tmp_path_factory.mktemp("export")
    rows = pictures(folder / "t.parquet", repeat=REPEATS)
    text = recipe(folder / "t.parquet", "rows_per_file: 12, seed: 3")
    options = RunOptions(workspace=str(folder / "ws"), executor="inprocess")
    report = run_recipe(parse_recipe(text), options)
    assert report.exit_code == 0 and report.state is not None
    (entry,) = report.state.plan.recipe.exports
    return Export(report.state, plan_export(report.state, entry, report.summary), rows)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[WorkerContext]:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    yield WorkerContext(WorkerOptions(), scratch)
    assert list(scratch.iterdir()) == []


def uid_of(row: dict[str, Any]) -> bytes:
    return row_uid(row["url"], row["text"])


def test_the_order_is_a_plain_sort_of_the_kept_rows(export: Export) -> None:
    shards = export.state.shards
    expected = []
    for number, shard in enumerate(shards):
        for row in range(shard.num_rows):
            said = export.rows[shard.first_row + row]
            if said["n"] >= 5:
                uid = uid_of(said)
                expected.append((stable_hash64(3, uid), uid, number, row))
    assert len(expected) == 35
    assert export.job.order(shards) == sorted(expected)
    assert export.job.order(shards[3:5]) == sorted(
        (h, uid, number - 3, row) for h, uid, number, row in expected if number in (3, 4)
    )
    assert export.job.order([]) == []


def test_kept_are_positions_and_uids_in_order_of_the_shard(export: Export) -> None:
    for shard in export.state.shards:
        positions, uids = export.job.kept(shard)
        mine = export.rows[shard.first_row : shard.first_row + shard.num_rows]
        assert positions.tolist() == [i for i, row in enumerate(mine) if row["n"] >= 5]
        assert uids == [uid_of(mine[i]) for i in positions]


def test_gathered_rows_are_in_the_order_that_was_asked_for(
    export: Export, context: WorkerContext
) -> None:
    places = export.job.order(export.state.shards)
    part = random.Random(0).sample(places, 17)
    spool = Spool(context.scratch)
    seen: list[int] = []
    context.progress = seen.append
    table = gather(export.job, ["image"], export.sources, part, spool, context)
    expected = [export.at(place) for place in part]
    assert table.column_names == ["uid", *export.job.annotations.names, *span_names("image")]
    assert table.column("uid").to_pylist() == [uid_of(row) for row in expected]
    for name in ("url", "text", "n"):
        assert table.column(name).to_pylist() == [row[name] for row in expected]
    lengths = [None if row["text"] is None else len(row["text"]) for row in expected]
    assert table.column("num_letters").to_pylist() == lengths
    offsets, sizes = (table.column(name).to_numpy() for name in span_names("image"))
    assert spool.read(offsets, sizes).to_pylist() == [row["image"] for row in expected]
    assert sum(seen) in (0, 17)
    spool.close()


@pytest.mark.parametrize("num_rows", [1, 5, WRITE_ROWS])
def test_batches_hold_payloads_after_uid_and_key(
    export: Export, context: WorkerContext, num_rows: int
) -> None:
    part = export.job.order(export.state.shards)
    spool = Spool(context.scratch)
    table = gather(export.job, ["image"], export.sources, part, spool, context)
    table = table.add_column(1, "key", pa.array([f"k{i}" for i in range(len(part))]))
    batches = list(payload_batches(table, ["image"], spool, num_rows))
    whole = pa.Table.from_batches(batches)
    assert whole.column_names == ["uid", "key", "image", *export.job.annotations.names]
    assert whole.column("image").to_pylist() == [export.at(place)["image"] for place in part]
    assert whole.drop_columns("image").equals(table.drop_columns(list(span_names("image"))))
    sizes = [batch.num_rows for batch in batches]
    assert sum(sizes) == len(part) and set(sizes[:-1]) <= {num_rows} and sizes[-1] <= num_rows
    spool.close()


def test_a_job_travels_to_workers_and_its_work_lies_apart(export: Export) -> None:
    job: ExportJob = pickle.loads(pickle.dumps(export.job))
    assert job.order(export.state.shards) == export.job.order(export.state.shards)
    assert job.work.startswith("exporting/") and job.folder.startswith("export/train-")
    assert job.work.removeprefix("exporting/") == job.folder.removeprefix("export/")


def test_a_payload_without_spans_is_read_from_its_file(
    run: Callable[..., RunReport], tmp_path: Path, context: WorkerContext
) -> None:
    (tmp_path / "media").mkdir()
    images = {f"{i:02}": b"\x89PNG\r\n\x1a\n" + bytes([i]) * (i + 1) for i in range(9)}
    for name, data in images.items():
        (tmp_path / "media" / f"{name}.png").write_bytes(data)
        (tmp_path / "media" / f"{name}.txt").write_text(f"caption {name}")
    text = recipe(tmp_path / "t.parquet").replace("n >= 5", "num_letters > 0")
    table = f"use: url_table, path: '{tmp_path / 't.parquet'}'"
    report = run(text.replace(table, f"use: folder, path: '{tmp_path / 'media'}'"))
    assert report.state is not None
    (entry,) = report.state.plan.recipe.exports
    plan = plan_export(report.state, entry, report.summary)
    export = Export(report.state, plan, [])
    part = plan.job.order(report.state.shards)
    spool = Spool(context.scratch)
    rows = gather(plan.job, [], export.sources, part, spool, context)
    rows = rows.add_column(1, "key", pa.array([""] * len(part)))
    (tmp_path / "media" / "04.png").write_bytes(b"other bytes")
    found = pa.Table.from_batches(list(payload_batches(rows, ["image"], spool, 4)))
    assert found.column_names[:3] == ["uid", "key", "image"]
    said = dict(zip(found["text"].to_pylist(), found["image"].to_pylist(), strict=True))
    assert said == {f"caption {n}": None if n == "04" else data for n, data in images.items()}
    spool.close()

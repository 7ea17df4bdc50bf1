"""Runs a global stage over tables in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from winnow.contracts.stage import GlobalInputs, GlobalOutputs, GlobalStage, ShardRef

RunGlobal = Callable[[GlobalStage, list[pa.Table]], tuple[list[pa.Table], Mapping[str, Any]]]


class TableInputs(GlobalInputs):
    def __init__(self, tables: list[pa.Table], reads: pa.Schema, scratch: Path) -> None:
        self.scratch = scratch
        self.shards = tuple(ShardRef(id=f"s{i}", num_rows=t.num_rows) for i, t in enumerate(tables))
        self._tables = {s.id: t for s, t in zip(self.shards, tables, strict=True)}
        self._reads = reads

    def table(self, shard: ShardRef) -> pa.Table:
        names = ["uid", *(name for name in self._reads.names if name != "uid")]
        table = self._tables[shard.id].select(names)
        for name in self._reads.names:
            assert table.schema.field(name).type == self._reads.field(name).type
        return table


class TableOutputs(GlobalOutputs):
    def __init__(self, writes: pa.Schema) -> None:
        self._writes = writes
        self.tables: dict[str, pa.Table] = {}

    def write(self, shard: ShardRef, columns: pa.Table) -> None:
        assert columns.schema.names == self._writes.names
        assert columns.schema.types == self._writes.types
        assert columns.num_rows == shard.num_rows
        assert shard.id not in self.tables
        columns.validate(full=True)
        self.tables[shard.id] = columns


@pytest.fixture(scope="session")
def run_global(tmp_path_factory: pytest.TempPathFactory) -> RunGlobal:
    """Return a function that computes a stage over shards and checks the shape of its output."""

    def run(stage: GlobalStage, tables: list[pa.Table]) -> tuple[list[pa.Table], Mapping[str, Any]]:
        inputs = TableInputs(tables, stage.reads, tmp_path_factory.mktemp("scratch"))
        outputs = TableOutputs(stage.writes)
        counters = stage.compute(inputs, outputs)
        return [outputs.tables[s.id] for s in inputs.shards], counters

    return run

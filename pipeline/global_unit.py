"""The work of a global stage: all shards in, one file per shard out, ``_stage.json`` last."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, GlobalStage, Resources, ShardRef
from winnow.pipeline.arrow_files import UID, ShardWriter
from winnow.pipeline.columns import ColumnSet, Patches, ShardReader
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult, WorkerContext

STAGE_FILE = "_stage.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class GlobalUnit(Unit):
    """One global stage over all shards."""

    storage: Storage
    key: str
    stage: GlobalStage
    columns: ColumnSet
    sets: tuple[ColumnSet, ...]
    shards: tuple[Shard, ...]
    patches: Mapping[str, Patches] = field(default_factory=dict)
    """Shard id -> patches."""
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.key} over all {len(self.shards)} shards"

    @property
    def resources(self) -> Resources:
        return self.stage.resources

    def run(self, context: WorkerContext) -> UnitResult:
        """Compute and commit; a killed attempt starts again and writes the same files."""
        scratch = Path(tempfile.mkdtemp(prefix=f"{self.stage.name}-", dir=context.scratch))
        try:
            outputs = _Outputs(self, context)
            counters = dict(self.stage.compute(_Inputs(self, scratch), outputs))
            missing = [s.id for s in self.shards if s.id not in outputs.written]
            if missing:
                msg = f"{self.key} wrote nothing for {len(missing)} shards ({missing[0]} ...)"
                raise ShardError(msg, stage=self.key, retryable=False)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        record = {**self.record, "counters": counters}
        text = json.dumps(record, indent=1, sort_keys=True, default=str)
        self.storage.put(f"{self.columns.folder}/{STAGE_FILE}", text.encode())
        numbers = {k: float(v) for k, v in counters.items() if isinstance(v, int | float)}
        return UnitResult(
            rows=sum(s.num_rows for s in self.shards), counters={self.key: numbers}, extra=counters
        )


class _Inputs(GlobalInputs):
    def __init__(self, unit: GlobalUnit, scratch: Path) -> None:
        self._unit = unit
        self._by_id = {s.id: s for s in unit.shards}
        self.shards = tuple(ShardRef(id=s.id, num_rows=s.num_rows) for s in unit.shards)
        self.scratch = scratch

    def table(self, shard: ShardRef) -> pa.Table:
        found, unit = self._by_id[shard.id], self._unit
        patches = unit.patches.get(found.id, {})
        reader = ShardReader(unit.storage, unit.sets, found, patches)
        return reader.read([n for n in unit.stage.reads.names if n != "uid"])


class _Outputs(GlobalOutputs):
    def __init__(self, unit: GlobalUnit, context: WorkerContext) -> None:
        self._unit, self._context = unit, context
        self._by_id = {s.id: s for s in unit.shards}
        self.written: set[str] = set()

    def write(self, shard: ShardRef, columns: pa.Table) -> None:
        unit, found = self._unit, self._by_id[shard.id]
        if columns.num_rows != found.num_rows:
            msg = f"{unit.key} gave {columns.num_rows} rows for {found.num_rows}"
            raise ShardError(msg, stage=unit.key, shard=shard.id, retryable=False)
        rows = unit.storage.parquet(f"rows/{found.content_id}.parquet")
        uid = rows.read(columns=["uid"]).column("uid")
        storage = pa.chunked_array([c.storage for c in uid.chunks], UID.type)
        schema = pa.schema([UID, *unit.stage.writes])
        names = unit.stage.writes.names
        table = pa.table([storage, *(columns.column(n) for n in names)], names=["uid", *names])
        with unit.storage.create(unit.columns.file(found)) as commit:
            writer = ShardWriter(commit.file, schema)
            writer.write(table)
            writer.close()
        self.written.add(shard.id)
        self._context.progress(found.num_rows)

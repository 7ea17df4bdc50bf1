"""Asking a stage, on a worker and with a few rows, whether it can work at all, before it begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from winnow.contracts.stage import Resources, Stage
from winnow.pipeline.columns import SOURCE, ColumnSet, ShardReader
from winnow.pipeline.plan import Pass
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult, WorkerContext
from winnow.pipeline.work import State

NUM_SHARDS = 8
NUM_ROWS = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class PreflightUnit(Unit):
    """Gives a stage the first rows of some shards; its SetupError fails the unit."""

    storage: Storage
    key: str
    stage: Stage
    source: ColumnSet
    shards: tuple[Shard, ...]
    needs: Resources

    @property
    def label(self) -> str:
        return f"check {self.key}"

    @property
    def resources(self) -> Resources:
        return self.needs

    def run(self, context: WorkerContext) -> UnitResult:
        names = [n for n in self.stage.reads.names if n != "uid"]
        tables = []
        for shard in self.shards:
            rows = np.arange(min(shard.num_rows, -(-NUM_ROWS // len(self.shards))))
            reader = ShardReader(self.storage, (self.source,), shard, {})
            tables.append(reader.take(names, rows))
        sample = pa.concat_tables(tables).combine_chunks()
        for batch in sample.to_batches()[:1]:
            self.stage.preflight(batch, context.options)
        return UnitResult()


def preflight_units(state: State, passes: Sequence[Pass]) -> Iterator[PreflightUnit]:
    """Yield a unit per stage that asks somebody else, has no file yet and reads the source."""
    shards = state.contents
    step = max(1, -(-len(shards) // NUM_SHARDS))
    for pass_ in passes:
        for entry in pass_.entries:
            stage = entry.stage
            if not isinstance(stage, Stage) or stage.deterministic or state.present[entry.key]:
                continue
            if any(w != SOURCE for w in state.plan.inputs(entry.key)):
                continue
            yield PreflightUnit(
                storage=state.storage,
                key=entry.key,
                stage=stage,
                source=state.sets[SOURCE],
                shards=tuple(shards[::step]),
                needs=pass_.resources,
            )

"""Repeated rows: which rows say exactly what an earlier row of the source has said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.identity import UID_BYTES
from winnow.contracts.registry import register_global_stage
from winnow.contracts.stage import GlobalInputs, GlobalOutputs, GlobalStage
from winnow.stages.dedupe._columns import octets, valid_rows
from winnow.stages.dedupe._occurrences import Occurrences


@register_global_stage("repeated_rows", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatedRows(GlobalStage):
    """Mark rows whose uid came earlier in source order, and count how often each uid occurs.

    Reads:  nothing but the uid.
    Writes: repeated_row: bool, an equal uid came in an earlier shard, or earlier in this one;
                never null.
            num_occurrences: int64, rows with this uid, at least 1; never null.
    Cost:   24 bytes a row, on disk beyond 1 GB; one pass over the uids.
    Fails:  never for a row.
    """

    @property
    def reads(self) -> pa.Schema:
        return pa.schema([])

    @property
    def writes(self) -> pa.Schema:
        return pa.schema({"repeated_row": pa.bool_(), "num_occurrences": pa.int64()})

    def compute(self, inputs: GlobalInputs, outputs: GlobalOutputs) -> Mapping[str, Any]:
        occurrences = Occurrences(inputs.scratch)
        for _, table in inputs.tables():
            occurrences.add(octets(table["uid"], UID_BYTES), valid_rows(table["uid"]))
        num_uids = occurrences.num_repeated()
        repeats = 0
        for shard, (num, later) in zip(inputs.shards, occurrences.results(), strict=True):
            outputs.write(shard, pa.table([later, num], schema=self.writes))
            repeats += int(later.sum())
        return {
            "rows": sum(s.num_rows for s in inputs.shards),
            "repeated_rows": repeats,
            "uids_that_repeat": num_uids,
        }

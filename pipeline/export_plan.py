"""Planning an export: which input shards make a file, and the name that digests it all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.exporter import Exporter
from winnow.contracts.identity import stable_hash64
from winnow.contracts.parameters import result_parameters
from winnow.pipeline.arrow_files import is_payload
from winnow.pipeline.export_exchange import Exchange, SpoolUnit, group_rows, partition_bits
from winnow.pipeline.export_rows import ExportJob
from winnow.pipeline.export_unit import MANIFEST, BucketUnit, RepeatsUnit
from winnow.pipeline.fingerprint import digest
from winnow.pipeline.recipe import ExportEntry
from winnow.pipeline.shards import Shard
from winnow.pipeline.work import State


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportPlan:
    """The units of one export: keys and buckets, or an exchange; then finish."""

    job: ExportJob
    repeats: RepeatsUnit
    buckets: tuple[BucketUnit, ...]
    names: tuple[str, ...]
    exchange: Exchange | None = None

    @property
    def done(self) -> bool:
        """Whether the export is committed."""
        return self.job.storage.exists(f"{self.job.folder}/{MANIFEST}")


def is_global(exporter: Exporter) -> bool:
    """Whether an exporter wants one order over all files."""
    return getattr(exporter, "shuffle", "bucket") == "global"


def plan_export(state: State, entry: ExportEntry, summary: Mapping[str, Any]) -> ExportPlan:
    """Divide the kept rows of a selection among files."""
    job = _job(state, entry, str(summary["selection"]))
    kept = dict(zip(summary["shards"], summary["kept_per_shard"], strict=True))
    repeats = RepeatsUnit(job=job, shards=state.shards)
    if is_global(entry.exporter):
        exchange = _exchange(state, job, kept)
        return ExportPlan(
            job=job, repeats=repeats, buckets=(), names=exchange.names, exchange=exchange
        )
    shards = sorted(state.shards, key=lambda s: stable_hash64(entry.seed, s.id))
    buckets: list[BucketUnit] = []
    first = 0
    for group in _groups(shards, kept, entry.exporter.rows_per_file):
        cuts = _cuts(sum(kept[s.id] for s in group), entry.exporter.rows_per_file)
        patches = {s.id: state.all_patches(s.id) for s in group}
        unit = BucketUnit(job=job, first=first, cuts=cuts, shards=tuple(group), patches=patches)
        buckets.append(unit)
        first += len(cuts)
    names = tuple(entry.exporter.file_name(i) for i in range(first))
    return ExportPlan(job=job, repeats=repeats, buckets=tuple(buckets), names=names)


def _exchange(state: State, job: ExportJob, kept: Mapping[str, int]) -> Exchange:
    total = sum(kept.values())
    cuts = _cuts(total, job.exporter.rows_per_file)
    bits = partition_bits(len(cuts))
    places = {s.id: number for number, s in enumerate(state.shards)}
    groups = [
        SpoolUnit(
            job=job,
            shards=tuple(group),
            numbers=tuple(places[s.id] for s in group),
            patches={s.id: state.all_patches(s.id) for s in group},
            bits=bits,
        )
        for group in _groups(state.shards, kept, group_rows(total))
    ]
    names = tuple(job.exporter.file_name(i) for i in range(len(cuts)))
    return Exchange(job=job, groups=tuple(groups), names=names, cuts=cuts, bits=bits)


def _job(state: State, entry: ExportEntry, selection: str) -> ExportJob:
    schema = state.plan.schema
    annotations = pa.schema([f for f in schema if not is_payload(f.type)])
    parts = [
        entry.exporter.name,
        entry.exporter.version,
        result_parameters(entry.exporter),
        entry.seed,
        selection,
        [state.plan.recipe.license, state.plan.recipe.description],
        state.fingerprints,
        # Annotations that no filter reads are exported too: their gates and patches count.
        {w: str(s.when) for w, s in state.sets.items()},
        sorted(json.dumps([s.id, state.all_patches(s.id)]) for s in state.shards),
    ]
    return ExportJob(
        storage=state.storage,
        folder=f"export/{entry.key}-{digest(parts)[:12]}",
        key=entry.key,
        exporter=entry.exporter,
        seed=entry.seed,
        selection=selection,
        sets=tuple(state.sets.values()),
        payloads=tuple(entry.exporter.payloads(schema)),
        annotations=annotations,
    )


def _groups(
    shards: Sequence[Shard], kept: Mapping[str, int], rows_per_file: int
) -> Iterator[list[Shard]]:
    group: list[Shard] = []
    rows = 0
    for shard in shards:
        if kept[shard.id]:
            group.append(shard)
            rows += kept[shard.id]
        if rows >= rows_per_file:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _cuts(rows: int, rows_per_file: int) -> tuple[int, ...]:
    """Cut a bucket into files of nearly equal size, none above ``rows_per_file``."""
    count = -(-rows // rows_per_file)
    return tuple(rows * (i + 1) // count - rows * i // count for i in range(count))

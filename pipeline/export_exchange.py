"""A global shuffle: two passes over the kept rows, each of which reads and writes every row once.

Pass 1 reads groups of input shards; each group becomes one file of its kept rows, media included,
in order of hash(seed, uid) and cut at fixed hashes into partitions. Pass 2 makes a data file from
the partitions that hold its rows, of every group. The rows before a file are known from the counts
of the partitions alone, so no unit holds the keys of all rows. See docs/adr/0008.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from winnow.pipeline.columns import SOURCE, Patches
from winnow.pipeline.export_rows import ExportJob, Spool, gather, payload_batches, with_spans
from winnow.pipeline.export_unit import MANIFEST, summary_name, write_file
from winnow.pipeline.fingerprint import digest
from winnow.pipeline.shards import Shard
from winnow.pipeline.units import Unit, UnitResult, WorkerContext

GROUP_ROWS = 32_768
"""Kept rows of one pass-1 file, more where there would be over MAX_GROUPS files."""
MAX_GROUPS = 1024
PARTS_PER_FILE = 4
"""Partitions per data file: a data file reads at most its own rows and two ends of 1/4 file."""
MAX_BITS = 12
BATCH_ROWS = 64
COUNTS = b"winnow:counts"
PLACE = ("exchange:hash", "exchange:shard", "exchange:row")


def group_rows(kept: int) -> int:
    """Return how many kept rows one pass-1 file may take before the next shard begins another."""
    return max(GROUP_ROWS, -(-kept // MAX_GROUPS))


def partition_bits(num_files: int) -> int:
    """Return the number of leading bits of a row's hash that name its partition."""
    return min(max(math.ceil(math.log2(max(num_files, 1) * PARTS_PER_FILE)), 1), MAX_BITS)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpoolUnit(Unit):
    """Pass 1: the kept rows of some shards, in order of their hash, in one file.

    numbers: the shards' places in the source; they order repeats of one row.
    """

    job: ExportJob
    shards: tuple[Shard, ...]
    numbers: tuple[int, ...]
    patches: Mapping[str, Patches]
    bits: int

    @property
    def label(self) -> str:
        return f"exchange {self.job.key}, {len(self.shards)} shards from {self.shards[0].id}"

    @property
    def file(self) -> str:
        """Name of the file: of what is in it, and how it is cut."""
        ids = [[s.id for s in self.shards], list(self.numbers), self.bits]
        return f"{self.job.work}/exchange-{digest(ids)[:16]}.arrow"

    def run(self, context: WorkerContext) -> UnitResult:
        storage = self.job.storage
        if storage.exists(self.file) or storage.exists(f"{self.job.folder}/{MANIFEST}"):
            return UnitResult()
        order = self.job.order(self.shards)
        sources = [(s, self.patches.get(s.id, {})) for s in self.shards]
        stored = stored_payloads(self.job)
        with closing(Spool(context.scratch)) as spool:
            table = gather(self.job, stored, sources, order, spool, context)
            columns = zip(*((h, self.numbers[n], row) for h, _, n, row in order), strict=True)
            kinds = (pa.uint64(), pa.int64(), pa.int64())
            for name, values, kind in zip(PLACE, columns, kinds, strict=True):
                table = table.append_column(name, pa.array(values, kind))
            written = self._write(table, stored, spool)
        return UnitResult(rows=len(order), counters={self.job.key: {"exchanged_bytes": written}})

    def _write(self, table: pa.Table, stored: Sequence[str], spool: Spool) -> int:
        counts = _counts(table.column(PLACE[0]).to_numpy(), self.bits)
        first = next(payload_batches(table.slice(0, 1), stored, spool))
        schema = first.schema.with_metadata({COUNTS: json.dumps(counts.tolist())})
        with self.job.storage.create(self.file) as commit:
            with pa.ipc.new_file(commit.file, schema) as writer:
                start = 0
                for count in counts.tolist():
                    part = table.slice(start, count)
                    for batch in payload_batches(part, stored, spool, BATCH_ROWS):
                        writer.write_batch(batch.replace_schema_metadata(schema.metadata))
                    start += count
            return commit.file.tell()


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeUnit(Unit):
    """Pass 2: one data file. Its rows are ``count`` after the first ``skip`` of its partitions."""

    job: ExportJob
    name: str
    spools: tuple[str, ...]
    partitions: tuple[int, int]
    skip: int
    count: int

    @property
    def label(self) -> str:
        return f"write {self.job.key} {self.name}"

    def run(self, context: WorkerContext) -> UnitResult:
        storage = self.job.storage
        if storage.exists(summary_name(self.job, self.name)):
            return UnitResult(rows=self.count)
        with closing(Spool(context.scratch)) as spool:
            try:
                table = pa.concat_tables(self._read(spool))
            except FileNotFoundError:
                # Another run has finished this export and removed the files of pass 1.
                if storage.exists(f"{self.job.folder}/{MANIFEST}"):
                    return UnitResult()
                raise
            order, keys = self._order(table)
            table = table.take(pa.array(order)).drop_columns(list(PLACE))
            table = table.add_column(1, "key", pa.array(keys, pa.string()))
            written = write_file(self.job, self.name, table, spool)
        context.progress(self.count)
        return UnitResult(rows=self.count, counters={self.job.key: {"bytes": written}})

    def _read(self, spool: Spool) -> Iterator[pa.Table]:
        stored = stored_payloads(self.job)
        for name in self.spools:
            with self.job.storage.open(name) as file, pa.ipc.open_file(file) as reader:
                batches = -(-_stored_counts(reader) // BATCH_ROWS)
                ends = np.concatenate([[0], np.cumsum(batches)])
                low, high = (int(ends[p]) for p in self.partitions)
                yield _spooled(reader.schema.empty_table(), stored, spool)
                for index in range(low, high):
                    table = pa.Table.from_batches([reader.get_batch(index)])
                    yield _spooled(table, stored, spool)

    def _order(self, table: pa.Table) -> tuple[list[int], list[str]]:
        """Return where this file's rows are, in final order, and their keys.

        Rows of one uid share a partition, so all that come before a repeat are here to be counted.
        """
        names = (PLACE[0], "uid", PLACE[1], PLACE[2])
        places = sorted(
            zip(*(table.column(n).to_pylist() for n in names), range(table.num_rows), strict=True)
        )
        keys, last, repeats = [], b"", 0
        for _, uid, _, _, _ in places:
            repeats = repeats + 1 if uid == last else 0
            keys.append(f"{uid.hex()}-{repeats}" if repeats else uid.hex())
            last = uid
        stop = self.skip + self.count
        return [p[-1] for p in places[self.skip : stop]], keys[self.skip : stop]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Both passes of one export. names, cuts: the data files and the rows of each."""

    job: ExportJob
    groups: tuple[SpoolUnit, ...]
    names: tuple[str, ...]
    cuts: tuple[int, ...]
    bits: int = field(default=1)

    @property
    def spools(self) -> tuple[str, ...]:
        """The files of pass 1."""
        return tuple(unit.file for unit in self.groups)

    def merges(self) -> list[MergeUnit]:
        """Return the units of pass 2; pass 1 must be done."""
        counts = np.zeros(1 << self.bits, np.int64)
        for name in self.spools:
            with self.job.storage.open(name) as file, pa.ipc.open_file(file) as reader:
                counts += _stored_counts(reader)
        ends = np.cumsum(counts)
        units, first = [], 0
        for name, count in zip(self.names, self.cuts, strict=True):
            low = int(np.searchsorted(ends, first, side="right"))
            high = int(np.searchsorted(ends, first + count - 1, side="right")) + 1
            unit = MergeUnit(
                job=self.job,
                name=name,
                spools=self.spools,
                partitions=(low, high),
                skip=first - int(ends[low] - counts[low]),
                count=count,
            )
            units.append(unit)
            first += count
        return units

    def clear(self) -> None:
        """Remove the files of pass 1; the export is committed."""
        for name in self.spools:
            self.job.storage.remove(name)


def stored_payloads(job: ExportJob) -> list[str]:
    """Return the payloads that pass 1 copies: those that are not read from local files anyway."""
    virtual = {n for s in job.sets if s.writer == SOURCE for n in s.virtual}
    return [p for p in job.payloads if p not in virtual]


def _counts(hashes: np.ndarray, bits: int) -> np.ndarray:
    parts = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    return np.bincount(parts, minlength=1 << bits)


def _stored_counts(reader: pa.ipc.RecordBatchFileReader) -> np.ndarray:
    return np.array(json.loads(reader.schema.metadata[COUNTS]), np.int64)


def _spooled(table: pa.Table, stored: Sequence[str], spool: Spool) -> pa.Table:
    """Return a table of pass 1 with its payloads in the spool."""
    table = table.replace_schema_metadata(None)
    for payload in stored:
        spans = spool.add(table.column(payload))
        table = with_spans(table.drop_columns([payload]), payload, spans)
    return table

"""Rows on their way into an export: where they go, what is read of them, payloads on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from winnow.contracts.exporter import Exporter
from winnow.contracts.identity import stable_hashes64
from winnow.pipeline.arrow_files import from_file
from winnow.pipeline.columns import ColumnSet, Patches, ShardReader, read_at, read_payload
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import WorkerContext

WORK = "exporting"
"""Folder of what units of an unfinished export tell each other; `winnow gc` clears it."""
READ_ROWS = 256
WRITE_ROWS = 64

Place = tuple[int, bytes, int, int]
"""Where a row goes and comes from: hash(seed, uid), uid, number of its shard, row in the shard."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportJob:
    """What all units of one export share."""

    storage: Storage
    folder: str
    key: str
    exporter: Exporter
    seed: int
    selection: str
    sets: tuple[ColumnSet, ...]
    payloads: tuple[str, ...]
    annotations: pa.Schema
    """Every column that is not a payload."""

    @property
    def work(self) -> str:
        """Folder for what the units of this export tell each other."""
        return f"{WORK}/{self.folder.rpartition('/')[2]}"

    def reader(self, shard: Shard, patches: Patches) -> ShardReader:
        """Return a reader of a shard's columns."""
        return ShardReader(self.storage, self.sets, shard, patches)

    def kept(self, shard: Shard) -> tuple[np.ndarray, list[bytes]]:
        """Return positions and uids of a shard's kept rows."""
        file = self.storage.parquet(f"ledger/{self.selection}/{shard.id}.parquet")
        table = from_file(file.read(columns=["uid", "outcome"]))
        outcome = table.column("outcome").to_pylist()
        rows = np.array([i for i, value in enumerate(outcome) if value == "kept"], np.int64)
        return rows, table.column("uid").take(pa.array(rows)).to_pylist()

    def order(self, shards: Sequence[Shard]) -> list[Place]:
        """Return the places of all kept rows of some shards, in final order."""
        order = []
        for number, shard in enumerate(shards):
            rows, uids = self.kept(shard)
            hashes = stable_hashes64((self.seed,), uids).tolist()
            for hash64, uid, row in zip(hashes, uids, rows.tolist(), strict=True):
                order.append((hash64, uid, number, row))
        order.sort()
        return order


class Spool:
    """Payloads of an export's rows in a scratch file; a span is (offset, length), (-1, -1) null."""

    def __init__(self, scratch: Path) -> None:
        self._file = tempfile.TemporaryFile(prefix="payloads-", dir=scratch)  # noqa: SIM115
        self._end = 0

    def close(self) -> None:
        """Forget the payloads."""
        self._file.close()

    def add(self, values: pa.ChunkedArray) -> np.ndarray:
        """Store payloads; return an (N, 2) array of spans."""
        spans = np.full((len(values), 2), -1, np.int64)
        for place, value in enumerate(values):
            if value.is_valid:
                data = value.as_buffer()
                spans[place] = (self._end, data.size)
                self._end += self._file.write(data)
        return spans

    def read(self, offsets: np.ndarray, lengths: np.ndarray) -> pa.Array:
        """Return the payloads of some spans."""
        self._file.flush()
        number = self._file.fileno()
        values = [
            _whole(read_at(number, offset, length), length) if offset >= 0 else None
            for offset, length in zip(offsets.tolist(), lengths.tolist(), strict=True)
        ]
        return pa.array(values, pa.large_binary())


def _whole(found: bytes, length: int) -> bytes:
    if len(found) < length:
        msg = f"the spool ends {length - len(found):,} bytes early"
        raise OSError(msg)
    return found


def span_names(payload: str) -> tuple[str, str]:
    """Return the columns of a gathered table that say where a row's payload is in the spool."""
    return f"{payload}:offset", f"{payload}:length"


def with_spans(table: pa.Table, payload: str, spans: np.ndarray) -> pa.Table:
    """Return the table with a payload's spans as two further columns."""
    for name, values in zip(span_names(payload), spans.T, strict=True):
        table = table.append_column(name, pa.array(values))
    return table


def gather(
    job: ExportJob,
    payloads: Sequence[str],
    sources: Sequence[tuple[Shard, Patches]],
    part: Sequence[Place],
    spool: Spool,
    context: WorkerContext,
) -> pa.Table:
    """Return uid, annotations and spans of payloads of rows, in the order of ``part``."""
    by_shard: dict[int, list[tuple[int, int]]] = {}
    for place, (_, _, number, row) in enumerate(part):
        by_shard.setdefault(number, []).append((row, place))
    places: list[np.ndarray] = []
    tables: list[pa.Table] = []
    for number in sorted(by_shard):
        rows, order = (np.array(v) for v in zip(*sorted(by_shard[number]), strict=True))
        reader = job.reader(*sources[number])
        for start in range(0, len(rows), READ_ROWS):
            piece = rows[start : start + READ_ROWS]
            table = reader.take([*payloads, *job.annotations.names], piece)
            spans = {p: spool.add(table.column(p)) for p in payloads}
            table = table.drop_columns(list(payloads))
            for payload, found in spans.items():
                table = with_spans(table, payload, found)
            tables.append(table)
            context.progress(len(piece))
        places.append(order)
    return pa.concat_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))


def payload_batches(
    table: pa.Table, payloads: Sequence[str], spool: Spool, num_rows: int = WRITE_ROWS
) -> Iterator[pa.RecordBatch]:
    """Yield a gathered table with payloads in place of spans, after its second column.

    A payload without spans is read by its reference.
    """
    spans = {p: span_names(p) for p in payloads if span_names(p)[0] in table.column_names}
    plain = table.drop_columns([n for pair in spans.values() for n in pair])
    for start in range(0, table.num_rows, num_rows):
        found = plain.slice(start, num_rows)
        for payload in reversed(payloads):
            if payload in spans:
                places = table.select(spans[payload]).slice(start, num_rows)
                values = spool.read(*(column.to_numpy() for column in places))
            else:
                values = read_payload(found.column(f"{payload}_ref"))
            found = found.add_column(2, payload, values)
        yield from found.combine_chunks().to_batches()

"""Writing kept rows: which row goes to which file and place, and the same bytes every time.

Input shards are put in order of hash(seed, shard) and cut into buckets of about one file; a
bucket's rows are in order of hash(seed, uid). So a file reads few shards, and its content depends
on nothing but the selection, the seed and the exporter's parameters.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.exporter import ExportContext, Exporter, FileSummary
from winnow.contracts.identity import stable_hash64
from winnow.pipeline.arrow_files import UID, ShardWriter, from_file
from winnow.pipeline.columns import ColumnSet, Patches, ShardReader
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult, WorkerContext

WORK = "exporting"
"""Folder of what units of an unfinished export tell each other; `winnow gc` clears it."""
REPEATS = "repeats.parquet"
MANIFEST = "manifest.parquet"
READ_ROWS = 256
WRITE_ROWS = 64


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


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatsUnit(Unit):
    """Finds kept rows with equal uids, so that every sample gets a key of its own."""

    job: ExportJob
    shards: tuple[Shard, ...]

    @property
    def label(self) -> str:
        return f"keys of {self.job.key}"

    def run(self, context: WorkerContext) -> UnitResult:
        with tempfile.TemporaryDirectory(prefix="keys-", dir=context.scratch) as folder:
            database = duckdb.connect(
                f"{folder}/keys.duckdb", config={"memory_limit": "1GB", "temp_directory": folder}
            )
            database.execute("CREATE TABLE kept (uid BLOB, shard INTEGER, position INTEGER)")
            for number, shard in enumerate(self.shards):
                rows, uids = self.job.kept(shard)
                found = pa.table({"uid": pa.array(uids, pa.binary()), "position": rows})
                database.register("found", found)
                query = f"INSERT INTO kept SELECT uid, {number}, position FROM found"  # noqa: S608
                database.execute(query)
                database.unregister("found")
            table: pa.Table = database.sql(
                "SELECT shard, position, k FROM (SELECT shard, position, row_number() OVER "
                "(PARTITION BY uid ORDER BY shard, position) - 1 AS k FROM kept) "
                "WHERE k > 0 ORDER BY shard, position"
            ).to_arrow_table()
            database.close()
        ids = [self.shards[n].id for n in table.column("shard").to_pylist()]
        table = table.set_column(0, "shard", pa.array(ids, pa.string()))
        with self.job.storage.create(f"{self.job.work}/{REPEATS}") as commit:
            pq.write_table(table, commit.file)
        return UnitResult(rows=table.num_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketUnit(Unit):
    """Writes the files of one bucket: ``cuts`` are the rows of each, numbered from ``first``."""

    job: ExportJob
    first: int
    cuts: tuple[int, ...]
    shards: tuple[Shard, ...]
    patches: Mapping[str, Patches]

    @property
    def label(self) -> str:
        return f"write {self.job.key} {self.job.exporter.file_name(self.first)}"

    def run(self, context: WorkerContext) -> UnitResult:
        order = self._order()
        start, written = 0, 0
        for offset, count in enumerate(self.cuts):
            part = order[start : start + count]
            start += count
            name = self.job.exporter.file_name(self.first + offset)
            if not self.job.storage.exists(_summary_name(self.job, name)):
                written += self._write(name, part, context)
        return UnitResult(rows=sum(self.cuts), counters={self.job.key: {"bytes": written}})

    def _order(self) -> list[tuple[int, bytes, int, int]]:
        """Return (hash, uid, shard number, position) of all rows, in final order."""
        order = []
        for number, shard in enumerate(self.shards):
            rows, uids = self.job.kept(shard)
            for row, uid in zip(rows.tolist(), uids, strict=True):
                order.append((stable_hash64(self.job.seed, uid), uid, number, row))
        order.sort()
        return order

    def _write(
        self, name: str, part: Sequence[tuple[int, bytes, int, int]], context: WorkerContext
    ) -> int:
        job = self.job
        with tempfile.TemporaryDirectory(prefix="export-", dir=context.scratch) as folder:
            gathered = _Gathered(self, part, Path(folder), name, context)
            with job.storage.create(f"{job.folder}/{name}") as commit:
                out = _Hashing(commit.file)
                extra = job.exporter.write_file(gathered.batches(), cast(BinaryIO, out))
            with job.storage.create(f"{job.work}/{name}.parquet") as commit_part:
                writer = ShardWriter(commit_part.file, gathered.manifest.schema)
                writer.write(gathered.manifest)
                writer.close()
            gathered.close()
        summary = FileSummary(
            name=name, num_rows=len(part), size_bytes=out.size, sha256=out.sha256, extra=extra
        )
        job.storage.put(_summary_name(job, name), json.dumps(asdict(summary)).encode())
        return out.size


class _Gathered:
    """The rows of one file: annotations in memory, payloads spooled to a scratch file."""

    def __init__(
        self,
        unit: BucketUnit,
        part: Sequence[tuple[int, bytes, int, int]],
        folder: Path,
        name: str,
        context: WorkerContext,
    ) -> None:
        self._unit, self._payloads = unit, unit.job.payloads
        self._spool = open(folder / "payloads", "w+b")  # noqa: SIM115 - closed by close()
        self._spans: dict[str, np.ndarray] = {
            p: np.full((len(part), 2), -1, np.int64) for p in self._payloads
        }
        places: list[np.ndarray] = []
        tables: list[pa.Table] = []
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for place, (_, _, number, row) in enumerate(part):
            by_shard.setdefault(number, []).append((row, place))
        for number in sorted(by_shard):
            rows, order = (np.array(v) for v in zip(*sorted(by_shard[number]), strict=True))
            tables += self._read(unit.shards[number], rows, order, context)
            places.append(order)
        table = pa.concat_tables(tables)
        back = np.argsort(np.concatenate(places))
        table = table.take(pa.array(back))
        self._table = table.add_column(1, "key", self._keys(part))
        self.manifest = self._table.append_column("file", pa.array([name] * len(part)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield uid, key, payloads and annotations in final order."""
        for start in range(0, self._table.num_rows, WRITE_ROWS):
            table = self._table.slice(start, WRITE_ROWS)
            for payload in reversed(self._payloads):
                spans = self._spans[payload][start : start + WRITE_ROWS]
                values = pa.array([self._bytes(span) for span in spans], pa.large_binary())
                table = table.add_column(2, payload, values)
            yield from table.combine_chunks().to_batches()

    def close(self) -> None:
        """Close the spool."""
        self._spool.close()

    def _read(
        self, shard: Shard, rows: np.ndarray, order: np.ndarray, context: WorkerContext
    ) -> Iterator[pa.Table]:
        job, unit = self._unit.job, self._unit
        reader = job.reader(shard, unit.patches.get(shard.content_id, {}))
        names = [*self._payloads, *job.annotations.names]
        for start in range(0, len(rows), READ_ROWS):
            piece = rows[start : start + READ_ROWS]
            table = reader.take(names, piece)
            for payload in self._payloads:
                self._store(payload, table.column(payload), order[start : start + READ_ROWS])
            context.progress(len(piece))
            yield table.drop_columns(list(self._payloads))

    def _store(self, payload: str, values: pa.ChunkedArray, order: np.ndarray) -> None:
        for value, place in zip(values, order.tolist(), strict=True):
            if value.is_valid:
                data = value.as_buffer()
                self._spans[payload][place] = (self._spool.tell(), data.size)
                self._spool.write(data)

    def _bytes(self, span: np.ndarray) -> bytes | None:
        offset, length = int(span[0]), int(span[1])
        if offset < 0:
            return None
        self._spool.flush()
        return os.pread(self._spool.fileno(), length, offset)

    def _keys(self, part: Sequence[tuple[int, bytes, int, int]]) -> pa.Array:
        job = self._unit.job
        repeats = job.storage.parquet(f"{job.work}/{REPEATS}").read().to_pylist()
        suffix = {(r["shard"], r["position"]): f"-{r['k']}" for r in repeats}
        ids = [s.id for s in self._unit.shards]
        keys = [uid.hex() + suffix.get((ids[n], row), "") for _, uid, n, row in part]
        return pa.array(keys, pa.string())


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishUnit(Unit):
    """Writes what goes beside the data files; manifest.parquet last, which commits the export."""

    job: ExportJob
    names: tuple[str, ...]
    context: ExportContext

    @property
    def label(self) -> str:
        return f"finish {self.job.key}"

    def run(self, context: WorkerContext) -> UnitResult:
        from winnow.stages.export import _manifest

        job = self.job
        files = [
            FileSummary(**json.loads(job.storage.read(_summary_name(job, name))))
            for name in self.names
        ]
        schema = manifest_schema(job.annotations)
        with tempfile.TemporaryDirectory(prefix="manifest-", dir=context.scratch) as folder:
            path = Path(folder) / MANIFEST
            with open(path, "wb") as file:
                out = _Hashing(file)
                rows = _manifest.merge(self._parts(), cast(BinaryIO, out), schema)
            manifest = FileSummary(
                name=MANIFEST, num_rows=rows, size_bytes=out.size, sha256=out.sha256
            )
            sink = StorageSink(job.storage, job.folder)
            job.exporter.finish([*files, manifest], self.context, sink)
            name = f"{job.folder}/{MANIFEST}"
            with open(path, "rb") as file, job.storage.create(name) as commit:
                shutil.copyfileobj(file, commit.file, 1 << 20)
        return UnitResult(
            rows=sum(f.num_rows for f in files),
            extra={"bytes": sum(f.size_bytes for f in files), "files": len(files)},
        )

    def _parts(self) -> Iterator[pa.Table]:
        for name in self.names:
            file = self.job.storage.parquet(f"{self.job.work}/{name}.parquet")
            yield from_file(file.read())


class StorageSink:
    """The Sink of an exporter: the export's folder."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """Open a new file, committed when the block ends."""
        with self._storage.create(f"{self._folder}/{name}") as commit:
            yield commit.file

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a committed file."""
        return self._storage.open(f"{self._folder}/{name}")


class _Hashing:
    """A file that counts and digests what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        self._sha256.update(view)
        self.size += view.nbytes
        return self._file.write(data)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        self._file.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Leave the file to whoever opened it."""


def manifest_schema(annotations: pa.Schema) -> pa.Schema:
    """Return the columns of manifest.parquet, uid as it is in memory."""
    key, file = pa.field("key", pa.string()), pa.field("file", pa.string())
    return pa.schema([UID, key, *annotations, file])


def _summary_name(job: ExportJob, name: str) -> str:
    return f"{job.work}/{name}.json"

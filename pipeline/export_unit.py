"""Writing kept rows: which row goes to which file and place, and the same bytes every time.

Input shards are put in order of hash(seed, shard) and cut into buckets of about one file; a
bucket's rows are in order of hash(seed, uid). So a file reads few shards, and its content depends
on nothing but the selection, the seed and the exporter's parameters.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.errors import ShardError
from winnow.contracts.exporter import ExportContext, FileSummary
from winnow.pipeline.arrow_files import UID, ShardWriter, from_file
from winnow.pipeline.columns import Patches
from winnow.pipeline.export_rows import ExportJob, Place, Spool, gather, payload_batches
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult, WorkerContext

REPEATS = "repeats.parquet"
MANIFEST = "manifest.parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class RepeatsUnit(Unit):
    """Finds kept rows with equal uids, so that every sample gets a key of its own."""

    job: ExportJob
    shards: tuple[Shard, ...]

    @property
    def label(self) -> str:
        return f"keys of {self.job.key}"

    def run(self, context: WorkerContext) -> UnitResult:
        import duckdb

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
        order = self.job.order(self.shards)
        start, written = 0, 0
        for offset, count in enumerate(self.cuts):
            part = order[start : start + count]
            start += count
            name = self.job.exporter.file_name(self.first + offset)
            if not self.job.storage.exists(summary_name(self.job, name)):
                written += self._write(name, part, context)
        return UnitResult(rows=sum(self.cuts), counters={self.job.key: {"bytes": written}})

    def _write(self, name: str, part: Sequence[Place], context: WorkerContext) -> int:
        sources = [(s, self.patches.get(s.id, {})) for s in self.shards]
        with closing(Spool(context.scratch)) as spool:
            table = gather(self.job, self.job.payloads, sources, part, spool, context)
            table = table.add_column(1, "key", self._keys(part))
            return write_file(self.job, name, table, spool)

    def _keys(self, part: Sequence[Place]) -> pa.Array:
        repeats = self.job.storage.parquet(f"{self.job.work}/{REPEATS}").read().to_pylist()
        suffix = {(r["shard"], r["position"]): f"-{r['k']}" for r in repeats}
        ids = [s.id for s in self.shards]
        keys = [uid.hex() + suffix.get((ids[n], row), "") for _, uid, n, row in part]
        return pa.array(keys, pa.string())


def write_file(job: ExportJob, name: str, table: pa.Table, spool: Spool) -> int:
    """Commit one data file, its part of the manifest and its summary; return its bytes.

    table: uid, key, annotations and payload spans in final order.
    Fails: ShardError where a killed run left a file of this name with other bytes.
    """
    plain = table.select(["uid", "key", *job.annotations.names])
    manifest = plain.append_column("file", pa.array([name] * table.num_rows))
    with job.storage.create(f"{job.folder}/{name}") as commit:
        out = _Hashing(commit.file)
        batches = payload_batches(table, job.payloads, spool)
        sink = StorageSink(job.storage, job.folder)
        extra = job.exporter.write_part(batches, cast(BinaryIO, out), sink)
    if not commit.won:
        _check_same(job, name, out.sha256)
    with job.storage.create(f"{job.work}/{name}.parquet") as commit_part:
        writer = ShardWriter(commit_part.file, manifest.schema)
        writer.write(manifest)
        writer.close()
    summary = FileSummary(
        name=name, num_rows=table.num_rows, size_bytes=out.size, sha256=out.sha256, extra=extra
    )
    job.storage.put(summary_name(job, name), json.dumps(asdict(summary)).encode())
    return out.size


def _check_same(job: ExportJob, name: str, sha256: str) -> None:
    """Raise ShardError where the file that was there first is another: its sum would be wrong."""
    with job.storage.open(f"{job.folder}/{name}") as file:
        hasher = hashlib.sha256()
        while data := file.read(1 << 20):
            hasher.update(data)
    if hasher.hexdigest() != sha256:
        msg = (
            f"{job.storage.path(job.folder)}/{name} was written before, with other bytes: media or "
            f"libraries have changed since; remove that folder and {job.storage.path(job.work)} "
            "and run again"
        )
        raise ShardError(msg, stage=job.key, retryable=False)


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
            FileSummary(**json.loads(job.storage.read(summary_name(job, name))))
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
            job.storage.upload(path, name)
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


def summary_name(job: ExportJob, name: str) -> str:
    return f"{job.work}/{name}.json"

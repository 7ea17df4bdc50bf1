"""Input shards: consecutive rows of one source file, named by what they hold."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import UID_TYPE
from winnow.contracts.source import Source, SourceFile
from winnow.pipeline.arrow_files import UID, ShardWriter
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult, WorkerContext

ROWS = "rows"
FILES = "rows/_files"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One input shard.

    content_id: digest of all its source columns: names rows/ and the files of per-row stages.
    id: the same, with "~k" appended for the k-th repetition of equal content in one run; names
        what depends on the place in the source (global columns, ledger).
    """

    id: str
    content_id: str
    num_rows: int
    file: str
    first_row: int


def content_of(shard_id: str) -> str:
    """Return the content id in a shard's id."""
    return shard_id.partition("~")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestUnit(Unit):
    """Reads one source file into rows/<content_id>.parquet files, then commits its index entry."""

    storage: Storage
    source: Source
    file: SourceFile
    rows_per_shard: int
    index_name: str

    @property
    def label(self) -> str:
        return f"read {self.file.name}"

    def run(self, context: WorkerContext) -> UnitResult:
        """Stream the file; memory holds one shard of metadata."""
        schema = pa.schema([UID, *self.source.schema()])
        shards: list[dict[str, object]] = []
        first = 0
        for table in _chunks(self.source.read(self.file), schema, self.rows_per_shard):
            content_id = table_digest(table)
            with self.storage.create(f"{ROWS}/{content_id}.parquet") as commit:
                writer = ShardWriter(commit.file, schema)
                writer.write(table)
                writer.close()
            shards.append({"id": content_id, "rows": table.num_rows, "first_row": first})
            first += table.num_rows
            context.progress(table.num_rows)
        entry = {"file": asdict(self.file), "shards": shards, "rows": first}
        self.storage.put(self.index_name, json.dumps(entry).encode())
        return UnitResult(rows=first)


def index_name(source: Source, file: SourceFile, rows_per_shard: int) -> str:
    """Return the name of a file's index entry: it changes with the file and how it is read."""
    from winnow.pipeline.fingerprint import digest, source_key

    key = digest([source_key(source), file.name, file.path, file.token, rows_per_shard])
    return f"{FILES}/{key}.json"


def list_shards(storage: Storage, names: Iterable[str]) -> list[Shard]:
    """Return the shards of the given index entries, in source order, repeats told apart."""
    seen: Counter[str] = Counter()
    shards = []
    for name in names:
        entry = json.loads(storage.read(name))
        for item in entry["shards"]:
            times = seen[item["id"]]
            seen[item["id"]] += 1
            shards.append(
                Shard(
                    id=item["id"] if not times else f"{item['id']}~{times}",
                    content_id=item["id"],
                    num_rows=item["rows"],
                    file=entry["file"]["name"],
                    first_row=item["first_row"],
                )
            )
    return shards


def table_digest(table: pa.Table) -> str:
    """Return the content id of a table: BLAKE2b-128 in hex over names, types and values.

    It depends on nothing else: not on chunks, offsets, padding or library versions.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for field in table.schema:
        hasher.update(f"{field.name}\0{field.type}\0".encode())
        _digest_column(hasher, table.column(field.name))
    return hasher.hexdigest()


def _digest_column(hasher: hashlib.blake2b, column: pa.ChunkedArray) -> None:
    kind = column.type
    valid = column.is_valid().to_numpy()
    hasher.update(np.packbits(valid).tobytes())
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        binary = column.cast(pa.large_binary()).fill_null(b"").combine_chunks()
        offsets = np.frombuffer(binary.buffers()[1], np.int64)[
            binary.offset : binary.offset + len(binary) + 1
        ]
        hasher.update(np.diff(offsets).astype("<i8").tobytes())
        data = binary.buffers()[2]
        if data is not None and len(offsets):
            hasher.update(memoryview(data)[offsets[0] : offsets[-1]])
    elif pa.types.is_fixed_size_binary(kind):
        hasher.update(b"".join(value or b"" for value in column.to_pylist()))
    elif pa.types.is_temporal(kind) and kind.bit_width in (32, 64):
        # As integers: what Python makes of them depends on the libraries that are there.
        _digest_values(hasher, column.cast(pa.int32() if kind.bit_width == 32 else pa.int64()))
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        _digest_values(hasher, column)
    else:
        hasher.update(repr(column.to_pylist()).encode("utf-8", "surrogatepass"))


def _digest_values(hasher: hashlib.blake2b, column: pa.ChunkedArray) -> None:
    values = column.fill_null(0).to_numpy()
    hasher.update(values.astype(values.dtype.newbyteorder("<")).tobytes())


def _chunks(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, rows_per_shard: int
) -> Iterator[pa.Table]:
    """Cut a stream of batches into tables of exactly ``rows_per_shard`` rows (the last shorter)."""
    pending: list[pa.Table] = []
    count = 0
    for batch in batches:
        table = _conform(pa.Table.from_batches([batch]), schema)
        while count + table.num_rows >= rows_per_shard:
            need = rows_per_shard - count
            yield pa.concat_tables([*pending, table.slice(0, need)]).combine_chunks()
            table, pending, count = table.slice(need), [], 0
        if table.num_rows:
            pending.append(table)
            count += table.num_rows
    if count:
        yield pa.concat_tables(pending).combine_chunks()


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.names != schema.names or table.schema.field("uid").type != UID_TYPE:
        msg = f"the source gave columns {table.schema.names}, not {schema.names}"
        raise ShardError(msg, retryable=False)
    return table.cast(schema)

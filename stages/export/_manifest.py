"""Parquet with fixed options: the same rows give the same bytes, however they arrive."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import repeat
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.identity import UID_TYPE
from winnow.stages.export._columns import is_annotation

MANIFEST_NAME = "manifest.parquet"
MANIFEST_GROUP_ROWS = 1 << 16


def merge(parts: Iterator[pa.Table], out: BinaryIO, schema: pa.Schema) -> int:
    """Write the manifest from parts in final order; return its number of rows.

    Each part has the columns of ``schema`` (more are left out), in memory's types: uid as
    fixed_size_binary(16), which becomes pa.uuid() in the file, and list<fixed_size_binary>, which
    becomes list<binary>. References into files of the machine that read them are not written.
    Holds MANIFEST_GROUP_ROWS rows and one part.
    """
    schema = pa.schema([f for f in schema if is_annotation(f)])
    stored = pa.schema([f.with_type(stored_type(f)) for f in schema])
    num_rows = 0
    with open_parquet(out, stored) as writer:
        batches = (b for part in parts for b in part.select(schema.names).to_batches())
        for table in row_groups(batches, schema, MANIFEST_GROUP_ROWS):
            num_rows += table.num_rows
            columns = [_as_stored(table.column(f.name), f.type) for f in stored]
            writer.write_table(pa.table(columns, stored), row_group_size=table.num_rows)
    return num_rows


def open_parquet(
    out: BinaryIO, schema: pa.Schema, payloads: Collection[str] = ()
) -> pq.ParquetWriter:
    """Return a writer whose options are all said, so that a new pyarrow's defaults change nothing.

    payloads: columns whose bytes are compressed already: stored as they are, without statistics.
    """
    leaves = _leaves(schema)
    plain = {path for path in leaves if path.split(".")[0] in payloads}
    packed = [path for path in leaves if path not in plain]
    return pq.ParquetWriter(
        out,
        schema,
        version="2.6",
        data_page_version="1.0",
        data_page_size=1 << 20,
        write_batch_size=1024,
        dictionary_pagesize_limit=1 << 20,
        compression={path: "none" if path in plain else "zstd" for path in leaves},
        compression_level=dict.fromkeys(packed, 3),
        use_dictionary=[path for path in packed if leaves[path] in ("String", "INT32")],
        write_statistics=packed,
        write_page_index=False,
        write_page_checksum=False,
        store_schema=True,
    )


def row_groups(
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    max_rows: int,
    max_bytes: int = 0,
    sizes: Callable[[pa.RecordBatch], Iterable[int]] | None = None,
) -> Iterator[pa.Table]:
    """Cut rows into tables of one chunk each, at places that do not depend on the batches.

    A table ends before it would have more than ``max_rows`` rows, or rows whose ``sizes`` sum up
    to more than ``max_bytes``; it has at least one row.
    """
    pending: list[pa.RecordBatch] = []
    rows, total = 0, 0
    for batch in batches:
        start = 0
        for row, size in enumerate(sizes(batch) if sizes else repeat(0, batch.num_rows)):
            if rows and (rows >= max_rows or total + size > max_bytes):
                pending.append(batch.slice(start, row - start))
                yield _joined(pending, schema)
                pending, start, rows, total = [], row, 0, 0
            rows += 1
            total += size
        pending.append(batch.slice(start))
    if rows:
        yield _joined(pending, schema)


def _joined(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    # Pages are cut at the ends of chunks too: one chunk, or the bytes follow the batches.
    table = pa.Table.from_batches([b.select(schema.names) for b in batches if b.num_rows])
    return table.cast(schema).combine_chunks()


def stored_type(field: pa.Field) -> pa.DataType:
    """Return the type that a reader can use: uid as UUID; lists of binary, because pandas cannot
    read a list of fixed_size_binary."""
    if field.name == "uid" and field.type == UID_TYPE:
        return pa.uuid()
    return readable_type(field.type)


def readable_type(kind: pa.DataType) -> pa.DataType:
    """Return list<binary> for list<fixed_size_binary>, other types as they are."""
    if pa.types.is_list(kind) and pa.types.is_fixed_size_binary(kind.value_type):
        return pa.list_(pa.binary())
    return kind


def _as_stored(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if not isinstance(kind, pa.UuidType):
        return column.cast(kind)
    chunks = [pa.ExtensionArray.from_storage(kind, chunk) for chunk in column.chunks]
    return pa.chunked_array(chunks, kind)


def _leaves(schema: pa.Schema) -> dict[str, str]:
    """Return the leaf columns as Parquet names them, with "String" or their physical type."""
    buffer = io.BytesIO()
    pq.ParquetWriter(buffer, schema).close()
    stored = pq.ParquetFile(buffer).schema
    columns = [stored.column(index) for index in range(len(stored.names))]
    return {
        c.path: "String" if c.logical_type.type == "STRING" else c.physical_type for c in columns
    }

"""Parquet files of a workspace: uid as UUID in the file and as 16 bytes in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.identity import UID_TYPE

ROW_GROUP_BYTES = 32 << 20
"""Media row groups stay below 64 MB; narrow columns usually fit one row group a shard."""
UID = pa.field("uid", UID_TYPE)


def is_payload(kind: pa.DataType) -> bool:
    """Whether a column holds media bytes."""
    return bool(pa.types.is_large_binary(kind))


def file_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema that a file of these columns has."""
    fields = [pa.field("uid", pa.uuid()) if f.name == "uid" else f for f in schema]
    return pa.schema(fields)


def to_file(table: pa.Table) -> pa.Table:
    """Return the table as it is written."""
    index = table.schema.get_field_index("uid")
    if index < 0:
        return table
    chunks = [
        pa.ExtensionArray.from_storage(pa.uuid(), chunk) for chunk in table.column(index).chunks
    ]
    column = pa.chunked_array(chunks, pa.uuid())
    return table.set_column(index, pa.field("uid", pa.uuid()), column)


def from_file(table: pa.Table) -> pa.Table:
    """Return the table as it is used in memory."""
    index = table.schema.get_field_index("uid")
    if index < 0 or table.schema.field(index).type == UID_TYPE:
        return table
    column = table.column(index)
    chunks = [getattr(chunk, "storage", chunk) for chunk in column.chunks]
    return table.set_column(index, UID, pa.chunked_array(chunks, UID_TYPE))


class ShardWriter:
    """Writes batches of one shard file with bounded row groups."""

    def __init__(self, file: BinaryIO, schema: pa.Schema) -> None:
        self._schema = schema
        self._pending: list[pa.Table] = []
        self._bytes = 0
        self.num_rows = 0
        payloads = [f.name for f in schema if is_payload(f.type)]
        self._writer = pq.ParquetWriter(
            file,
            file_schema(schema),
            # A mapping names leaves; without payloads one word reaches nested columns too.
            compression={f.name: "none" if f.name in payloads else "zstd" for f in schema}
            if payloads
            else "zstd",
            use_dictionary=[f.name for f in schema if pa.types.is_string(f.type)],
            write_statistics=False,
        )

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Append rows."""
        table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
        table = table.select(self._schema.names).cast(self._schema)
        self._pending.append(table)
        self._bytes += table.nbytes
        self.num_rows += table.num_rows
        if self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the footer; an empty shard is a file without rows."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Write nothing more, not even when this is collected: the file goes."""
        self._writer.is_open = False

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending)
            self._writer.write_table(to_file(table), row_group_size=max(1, table.num_rows))
        self._pending, self._bytes = [], 0


class RowCursor:
    """Reads ascending rows of one file, one row group at a time."""

    def __init__(self, file: pq.ParquetFile, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = list(columns)
        self._starts = [0]
        for index in range(file.metadata.num_row_groups):
            self._starts.append(self._starts[-1] + file.metadata.row_group(index).num_rows)
        self._loaded: tuple[int, pa.Table] | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the file."""
        return self._starts[-1]

    def take(self, rows: np.ndarray) -> pa.Table:
        """Return the rows with these ascending positions."""
        parts = []
        for index in range(len(self._starts) - 1):
            low, high = self._starts[index], self._starts[index + 1]
            first, last = np.searchsorted(rows, (low, high))
            if first < last:
                parts.append(_pick(self._group(index), rows[first:last] - low))
        if not parts:
            return from_file(self._file.schema_arrow.empty_table().select(self._columns))
        return pa.concat_tables(parts)

    def _group(self, index: int) -> pa.Table:
        if self._loaded is None or self._loaded[0] != index:
            self._loaded = None
            table = from_file(
                self._file.read_row_group(index, columns=self._columns, use_threads=False)
            )
            self._loaded = (index, table)
        return self._loaded[1]


def _pick(table: pa.Table, rows: np.ndarray) -> pa.Table:
    if rows[-1] - rows[0] + 1 == len(rows):
        return table.slice(int(rows[0]), len(rows))
    return table.take(pa.array(rows))

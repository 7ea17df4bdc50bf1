"""Reading the columns of a shard: files joined by position, patches laid over, gates applied."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import content_digest
from winnow.contracts.stage import NOT_SELECTED
from winnow.filters.expr import Expr, evaluate
from winnow.pipeline.arrow_files import UID, RowCursor
from winnow.pipeline.shards import Shard, content_of
from winnow.pipeline.storage import Storage

SOURCE = ""
"""Writer key of the columns that the source wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnSet:
    """The columns of one writer (the source, or a stage) and where its files are.

    placed: the columns depend on the shard's place in the source, not only on what is in it (a
        stage over all rows, and whatever reads one): copies of a shard have files of their own.
    virtual: payload columns of the source that are read through ``<payload>_ref``.
    """

    writer: str
    folder: str
    schema: pa.Schema
    when: Expr | None = None
    placed: bool = False
    virtual: tuple[str, ...] = ()

    def file(self, shard: Shard, suffix: str = "") -> str:
        """Return the name of a shard's file; suffix "r1" is the first patch."""
        return f"{self.folder}/{self.stem(shard.id)}{'.' + suffix if suffix else ''}.parquet"

    def stem(self, shard_id: str) -> str:
        """Return what a shard's files begin with."""
        return shard_id if self.placed else content_of(shard_id)

    @property
    def error(self) -> str | None:
        """The writer's error column."""
        names = self.schema.names
        return names[-1] if names and names[-1].endswith("_error") else None


Patches = Mapping[str, tuple[int, ...]]
"""Writer key -> the numbers of a shard's patches, ascending."""


class ShardReader:
    """Reads columns of one shard by row position. Not thread-safe."""

    def __init__(
        self, storage: Storage, sets: Sequence[ColumnSet], shard: Shard, patches: Patches
    ) -> None:
        self._storage, self._shard, self._patches = storage, shard, patches
        self._sets = {s.writer: s for s in sets}
        self._origin = {n: s.writer for s in sets for n in [*s.schema.names, *s.virtual]}
        self._cursors: dict[tuple[str, str, tuple[str, ...]], RowCursor] = {}
        self._patch_rows: dict[tuple[str, int], np.ndarray] = {}

    def has(self, name: str) -> bool:
        """Whether one of the sets has this column."""
        return name in self._origin

    def all_rows(self) -> np.ndarray:
        """Return the positions of all rows."""
        return np.arange(self._shard.num_rows)

    def take(self, names: Sequence[str], rows: np.ndarray) -> pa.Table:
        """Return uid + the named columns of the given ascending positions."""
        by_writer: dict[str, list[str]] = {SOURCE: []}
        for name in names:
            by_writer.setdefault(self._origin[name], []).append(name)
        found: dict[str, pa.ChunkedArray] = {}
        uid: pa.ChunkedArray | None = None
        for writer, wanted in by_writer.items():
            table = self._writer_rows(self._sets[writer], wanted, rows)
            if uid is None:
                uid = table.column("uid")
            elif not uid.equals(table.column("uid")):
                msg = "the column files of this shard do not belong to the same rows"
                raise ShardError(msg, stage=writer, shard=self._shard.id, retryable=False)
            found.update({n: table.column(n) for n in wanted})
        fields = [self._field(n) for n in names]
        assert uid is not None
        return pa.table([uid, *(found[n] for n in names)], pa.schema([UID, *fields]))

    def read(self, names: Sequence[str]) -> pa.Table:
        """Return uid + the named columns of all rows."""
        return self.take(names, self.all_rows())

    def gate(self, when: Expr, rows: np.ndarray) -> np.ndarray:
        """Return a boolean per position: whether the gate is true (null is not)."""
        table = self.take(sorted(when.columns()), rows)
        return _true(evaluate(when, table))

    def patch_rows(self, writer: str, number: int) -> np.ndarray:
        """Return the positions that a patch covers."""
        key = (writer, number)
        if key not in self._patch_rows:
            cursor = self._cursor(self._sets[writer], f"r{number}", ("row",))
            column = cursor.take(np.arange(cursor.num_rows)).column("row")
            self._patch_rows[key] = column.to_numpy().astype(np.int64)
        return self._patch_rows[key]

    def stored(self, writer: str, name: str) -> pa.ChunkedArray:
        """Return a column of a writer as its files have it, patches laid over, no gate applied."""
        table = self._overlaid(self._sets[writer], [name], self.all_rows())
        return table.column(name)

    def _field(self, name: str) -> pa.Field:
        writer = self._sets[self._origin[name]]
        if name in writer.virtual:
            return pa.field(name, pa.large_binary())
        return writer.schema.field(name)

    def _writer_rows(self, writer: ColumnSet, names: list[str], rows: np.ndarray) -> pa.Table:
        plain = [n for n in names if n not in writer.virtual]
        references = [f"{n}_ref" for n in names if n in writer.virtual]
        table = self._overlaid(writer, list(dict.fromkeys([*plain, *references])), rows)
        for name in names:
            if name in writer.virtual:
                payload = read_payload(table.column(f"{name}_ref"))
                table = table.append_column(pa.field(name, pa.large_binary()), payload)
        if writer.when is None or not names:
            return table
        outside = ~self.gate(writer.when, rows)
        return _mask(table, outside, writer.error) if outside.any() else table

    def _overlaid(self, writer: ColumnSet, names: list[str], rows: np.ndarray) -> pa.Table:
        table = self._cursor(writer, "", ("uid", *names)).take(rows)
        for number in self._patches.get(writer.writer, ()):
            covered = self.patch_rows(writer.writer, number)
            inside = np.isin(rows, covered)
            if inside.any():
                at = np.searchsorted(covered, rows[inside])
                patch = self._cursor(writer, f"r{number}", ("uid", *names)).take(at)
                table = overlay(table, patch, np.flatnonzero(inside))
        return table

    def _cursor(self, writer: ColumnSet, suffix: str, names: tuple[str, ...]) -> RowCursor:
        key = (writer.writer, suffix, names)
        if key not in self._cursors:
            name = writer.file(self._shard, suffix)
            try:
                self._cursors[key] = RowCursor(self._storage.parquet(name), names)
            except pa.ArrowInvalid as error:
                msg = f"{self._storage.path(name)} is damaged ({error}); remove it and run again"
                raise ShardError(
                    msg, stage=writer.writer, shard=self._shard.id, retryable=False
                ) from None
        return self._cursors[key]


def overlay(table: pa.Table, patch: pa.Table, at: np.ndarray) -> pa.Table:
    """Return ``table`` with the rows at positions ``at`` replaced by those of ``patch``."""
    index = np.arange(table.num_rows)
    index[at] = table.num_rows + np.arange(patch.num_rows)
    return pa.concat_tables([table, patch.cast(table.schema)]).take(pa.array(index))


def null_rows(schema: pa.Schema, uid: pa.ChunkedArray, error: str | None, code: str) -> pa.Table:
    """Return rows with nulls and a code, as ``schema`` (whose first column is uid)."""
    columns: list[pa.ChunkedArray | pa.Array] = []
    for field in schema:
        if field.name == "uid":
            columns.append(uid)
        elif field.name == error:
            columns.append(pa.array([code] * len(uid), field.type))
        else:
            columns.append(pa.nulls(len(uid), field.type))
    return pa.table(columns, schema)


def _mask(table: pa.Table, outside: np.ndarray, error: str | None) -> pa.Table:
    empty = null_rows(table.schema, table.column("uid"), error, NOT_SELECTED)
    at = np.flatnonzero(outside)
    return overlay(table, empty.take(pa.array(at)), at)


def _true(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(values, False).to_numpy(), bool)


def read_payload(references: pa.ChunkedArray) -> pa.Array:
    """Read local media; bytes that no longer have their digest are null."""
    payloads: list[bytes | None] = []
    for reference in references.to_pylist():
        data = None
        if reference is not None and reference["path"] is not None:
            data = read_range(reference["path"], reference["offset"], reference["length"])
            if data is not None and content_digest(data) != reference["digest"]:
                data = None
        payloads.append(data)
    return pa.array(payloads, pa.large_binary())


def read_at(handle: int, offset: int, length: int) -> bytes:
    """Return bytes of an open file, fewer only where it ends. One call of the system reads 2 GiB at
    most on Linux."""
    found = os.pread(handle, length, offset)
    while len(found) < length:
        more = os.pread(handle, length - len(found), offset + len(found))
        if not more:
            break
        found += more
    return found


def read_range(path: str, offset: int, length: int) -> bytes | None:
    """Return bytes of a local file or fsspec URL; None where they are gone."""
    try:
        if "://" in path:
            filesystem, name = fsspec.core.url_to_fs(path)
            return bytes(filesystem.cat_file(name, start=offset, end=offset + length))
        handle = os.open(path, os.O_RDONLY)
        try:
            return read_at(handle, offset, length)
        finally:
            os.close(handle)
    except OSError:
        return None

"""What an exporter is: kept rows in, files for a trainer out, the same bytes every time."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, Protocol

import pyarrow as pa


class Sink(Protocol):
    """The folder of one export; a file appears in it only when it is whole."""

    def create(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a new file; it is committed when the block ends without an exception."""
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a committed file for reading."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSummary:
    """One written file: name within the export, rows, bytes, sha256 hex, and exporter extras."""

    name: str
    num_rows: int
    size_bytes: int
    sha256: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportContext:
    """What a dataset card can say: all of it reproducible, no wall clock and no host."""

    name: str
    recipe_name: str
    recipe_yaml: str
    selection: str
    schema: pa.Schema
    """Columns of the manifest: every annotation, payloads excluded."""
    funnel: Sequence[Mapping[str, Any]] = ()
    """One entry per filter in order: filter, description, kept, dropped, null, only."""
    rows_read: int = 0
    rows_kept: int = 0
    license: str = ""
    description: str = ""


class Exporter(abc.ABC):
    """Base of every exporter: a frozen, keyword-only dataclass of parameters."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0
    rows_per_file: int

    @abc.abstractmethod
    def payloads(self, columns: pa.Schema) -> list[str]:
        """Return the large_binary columns this exporter writes, given all the columns there are.

        Raises RecipeError where a column that it needs is not there."""

    @abc.abstractmethod
    def file_name(self, index: int) -> str:
        """Return the name of the index-th data file, from 0."""

    @abc.abstractmethod
    def write_file(self, rows: Iterator[pa.RecordBatch], out: BinaryIO) -> Mapping[str, Any]:
        """Write one data file from its rows (uid, key, payloads, annotations) in final order.

        ``key`` is a string column: the uid in hex, "-1", "-2" ... appended to repeats. Returns the
        ``extra`` of its FileSummary. Same rows, same bytes.
        """

    def write_part(
        self, rows: Iterator[pa.RecordBatch], out: BinaryIO, sink: Sink
    ) -> Mapping[str, Any]:
        """Write one data file as ``write_file`` does, and what lies beside it for its rows.

        For formats whose media are files of their own. Their names follow from the rows alone: a
        part may be written again after a kill, and the first of two equal files stays.
        """
        return self.write_file(rows, out)

    @abc.abstractmethod
    def finish(self, files: Sequence[FileSummary], context: ExportContext, sink: Sink) -> None:
        """Write what goes beside the data files (sizes.json, README.md, croissant.json)."""

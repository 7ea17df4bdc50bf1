"""What a source is: files that are read into rows; identity and order come from content."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One input file.

    path: what ``read`` opens (an fsspec URL or local path).
    name: stable name relative to the source's root; files are read in order of name.
    token: changes when the file changes (size and modification time, or an ETag).
    """

    path: str
    name: str
    token: str


class Source(abc.ABC):
    """Base of every source: a frozen, keyword-only dataclass of parameters."""

    name: ClassVar[str] = ""
    version: ClassVar[int] = 0

    @abc.abstractmethod
    def files(self) -> list[SourceFile]:
        """Return all files, sorted by name. Raises SetupError where there is none."""

    @abc.abstractmethod
    def schema(self) -> pa.Schema:
        """Return the columns of every row, without ``uid``. May read the first file's header.

        Local media are a column ``<payload>_ref`` of type MEDIA_REF, not bytes.
        """

    @abc.abstractmethod
    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield ``uid`` (fixed_size_binary(16)) + ``schema()`` of one file, in file order.

        Streams: memory does not grow with the file. A row that cannot be parsed is never
        swallowed: it becomes a row with nulls, or the file raises ShardError with its line.
        """

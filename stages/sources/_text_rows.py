"""Rows of text tables (csv, tsv, jsonl, txt), each with its line; nothing is swallowed.

A text format has no types: every value is a string here. An empty csv field is null. A JSON value
that is not a string stays JSON text (``0.3``, ``true``, ``{"a":1}``).
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn, Protocol, cast

import pyarrow as pa

from winnow.contracts.errors import ShardError
from winnow.stages.sources._files import is_local, open_file, printable

TextFormat = Literal["csv", "tsv", "jsonl", "txt"]

_MAX_LINE_BYTES = 64 << 20
_MAX_FIELD_CHARACTERS = 16 << 20
_PEEK_ROWS = 1000
_PIECE_BYTES = 64 << 10
CORRUPT = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, pa.ArrowInvalid)
"""What decompressors, and Arrow, raise on bytes that are not whole."""


class _Decompressor(Protocol):
    """``bz2.BZ2Decompressor`` and ``lzma.LZMADecompressor``."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Row(NamedTuple):
    """One row: the line it starts on, and its values by position, or what is wrong with it."""

    line: int
    values: Sequence[str | None] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOptions:
    """How to read text: see UrlTable, whose parameters these are."""

    column_names: tuple[str, ...] | None = None
    delimiter: str | None = None
    quoted: bool | None = None
    encoding: str = "utf-8"
    line_column: str = "url"


def open_stream(path: str) -> BinaryIO:
    """Open a file and decompress it by its extension (.gz, .bz2, .xz, .zst)."""
    raw = open_file(path)
    match path.rsplit(".", 1)[-1].lower():
        case "gz":
            return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
        case "bz2":
            return cast(BinaryIO, io.BufferedReader(_Streams(raw, bz2.BZ2Decompressor)))
        case "xz":
            return cast(BinaryIO, io.BufferedReader(_Streams(raw, lzma.LZMADecompressor)))
        case "zst":
            return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(raw, "zstd")))
    # fsspec's own readline takes no size.
    return raw if is_local(path) else cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, raw)))


class _Streams(io.RawIOBase):
    """What a file of bz2 or xz streams, one after the other, holds.

    Python's own readers stop without a word where a later stream is damaged (pbzip2 writes one per
    900 kB). Only zeros may stand between streams and behind them.
    """

    def __init__(self, raw: BinaryIO, make: Callable[[], _Decompressor]) -> None:
        self._raw, self._make = raw, make
        self._stream = make()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof:
                data = self._stream.unused_data.lstrip(b"\0")
                while not data:
                    piece = self._raw.read(_PIECE_BYTES)
                    if not piece:
                        return 0
                    data = piece.lstrip(b"\0")
                self._stream = self._make()
            else:
                data = self._raw.read(_PIECE_BYTES) if self._stream.needs_input else b""
                if self._stream.needs_input and not data:
                    msg = "it ends within a stream"
                    raise EOFError(msg)
            try:
                found = self._stream.decompress(data, len(buffer))
            except (OSError, lzma.LZMAError) as error:  # bz2 says OSError
                raise EOFError(str(error)) from error
            if found:
                buffer[: len(found)] = found
                return len(found)

    def close(self) -> None:
        self._raw.close()
        super().close()


def fail(path: str, problem: str, *, line: int = 0, retryable: bool = False) -> NoReturn:
    """Raise the ShardError of a file, with the line where there is one."""
    where = f"{printable(path)}, line {line}" if line else printable(path)
    msg = f"{where}: {problem}"
    raise ShardError(msg, retryable=retryable)


class Lines(Iterator[str]):
    """Decoded lines of a stream; remembers the first undecodable line since it was last asked."""

    def __init__(self, path: str, stream: BinaryIO, encoding: str) -> None:
        self.path, self.number = path, 0
        self._stream, self._encoding = stream, encoding
        self._bad = ""

    def __next__(self) -> str:
        try:
            raw = self._stream.readline(_MAX_LINE_BYTES)
        except CORRUPT as error:
            fail(
                self.path, f"the compressed data are cut or corrupt: {error}", line=self.number + 1
            )
        except OSError as error:
            fail(self.path, f"cannot read on: {error}", line=self.number + 1, retryable=True)
        if not raw:
            raise StopIteration
        self.number += 1
        if len(raw) == _MAX_LINE_BYTES:
            fail(self.path, f"longer than {_MAX_LINE_BYTES} bytes", line=self.number)
        if self.number == 1:
            raw = self._without_mark(raw)
        try:
            return raw.decode(self._encoding)
        except UnicodeDecodeError as error:
            self._bad = self._bad or (
                f"0x{raw[error.start]:02x}, byte {error.start + 1} of line {self.number}, is "
                f"not {self._encoding}; set `encoding` (latin-1, cp1252, ...) or convert the file"
            )
            return raw.decode(self._encoding, "replace")

    def problem(self) -> str:
        """Return what was undecodable since the last call, "" for nothing."""
        bad, self._bad = self._bad, ""
        return bad

    def _without_mark(self, raw: bytes) -> bytes:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            fail(self.path, "this is UTF-16; convert the file to UTF-8", line=1)
        return raw.removeprefix(b"\xef\xbb\xbf")


class TextTable:
    """An open text table: its columns, then its rows."""

    def __init__(self, path: str, form: TextFormat, options: TextOptions) -> None:
        self._path, self._form, self._options = path, form, options
        try:
            self._stream = open_stream(path)
        except OSError as error:
            fail(path, f"cannot open: {error}", retryable=not isinstance(error, FileNotFoundError))
        self._lines = Lines(path, self._stream, options.encoding)
        self._peeked: list[tuple[int, Any]] = []
        self._rows: Iterator[Any] = self._json_objects() if form == "jsonl" else self._split_rows()
        self.columns = self._read_columns()

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def rows(self, wanted: Sequence[str], known: frozenset[str] | None) -> Iterator[Row]:
        """Yield every row with the values of ``wanted``, in that order.

        ``known``: a jsonl key outside it fails the file (its values would be lost); None: ignored.
        """
        if self._form == "jsonl":
            yield from self._json_rows(wanted, known)
            return
        places = [self.columns.index(name) for name in wanted]
        count = len(self.columns)
        for row in self._rows:
            if not row.problem and len(row.values) != count:
                problem = f"{len(row.values)} fields, the header has {count}"
                yield Row(line=row.line, problem=problem)
            elif row.problem:
                yield row
            else:
                yield Row(row.line, [row.values[i] or None for i in places])

    def _read_columns(self) -> list[str]:
        if self._form == "txt":
            return [self._options.line_column]
        if self._form == "jsonl":
            return self._json_columns()
        if self._options.column_names is not None:
            return list(self._options.column_names)
        header = next(self._rows, None)
        if header is None:
            return []
        if header.problem:
            fail(self._path, header.problem, line=header.line)
        names = [name or f"column_{i + 1}" for i, name in enumerate(header.values)]
        double = sorted({str(name) for name in names if names.count(name) > 1})
        if double:
            fail(self._path, f"two columns are called {double[0]!r}", line=header.line)
        return [str(name) for name in names]

    def _split_rows(self) -> Iterator[Row]:
        if self._form == "txt":
            for text in self._lines:
                if url := text.strip():
                    yield self._row(self._lines.number, [url])
            return
        csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD_CHARACTERS))
        quoted = self._options.quoted
        reader = csv.reader(
            self._lines,
            delimiter=self._options.delimiter or ("\t" if self._form == "tsv" else ","),
            quoting=csv.QUOTE_NONE if quoted is False else csv.QUOTE_MINIMAL,
            strict=True,
        )
        while True:
            line = self._lines.number + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield self._bad_quoting(line, str(error))
                continue
            if not values:
                continue  # a blank line
            if self._form == "tsv" and quoted is None and self._lines.number > line:
                self._check_swallowed(line, values)
            yield self._row(line, values)

    def _row(self, line: int, values: Sequence[str | None]) -> Row:
        problem = self._lines.problem()
        return Row(line, problem=problem) if problem else Row(line, values)

    def _bad_quoting(self, line: int, error: str) -> Row:
        if "unexpected end" in error or "field limit" in error:
            # The quote has eaten whole rows: no row of nulls can stand for them.
            fail(self._path, f"a quote opened in this row is never closed ({error})", line=line)
        self._lines.problem()
        return Row(line=line, problem=f"{error}; if quotes are plain text here, set quoted: false")

    def _check_swallowed(self, line: int, values: Sequence[str]) -> None:
        if any("\n" in value and "\t" in value for value in values):
            problem = (
                "a quoted field holds tabs and line ends: either a stray quote has swallowed rows "
                "(set quoted: false) or the field is meant so (set quoted: true)"
            )
            fail(self._path, problem, line=line)

    def _json_objects(self) -> Iterator[Any]:
        """Yield (line, object or problem)."""
        for text in self._lines:
            line = self._lines.number
            if problem := self._lines.problem():
                yield line, problem
            elif text.strip():
                try:
                    value = json.loads(text)
                except (ValueError, RecursionError) as error:
                    yield line, f"not JSON: {error}"
                    continue
                yield line, value if isinstance(value, dict) else "not a JSON object"

    def _json_columns(self) -> list[str]:
        """Return the keys of the first rows, which are kept for ``rows``."""
        names: dict[str, None] = {}
        for line, value in self._rows:
            self._peeked.append((line, value))
            if isinstance(value, dict):
                names.update(dict.fromkeys(value))
            if len(self._peeked) == _PEEK_ROWS:
                break
        if halves := [name for name in names if not _is_unicode(name)]:
            fail(self._path, f"the key {halves[0]!r} holds half of a pair of surrogates; rename it")
        return list(names)

    def _json_rows(self, wanted: Sequence[str], known: frozenset[str] | None) -> Iterator[Row]:
        peeked, self._peeked = self._peeked, []
        for part in (peeked, self._rows):
            for line, value in part:
                if isinstance(value, str):
                    yield Row(line=line, problem=value)
                    continue
                if known is not None and not known.issuperset(value):
                    unknown = min(set(value) - known)
                    problem = (
                        f"the key {unknown!r} is not among the columns that the first "
                        f"{_PEEK_ROWS} rows of the first file have; list the columns in `keep`"
                    )
                    fail(self._path, problem, line=line)
                yield Row(line, [_json_text(value.get(name)) for name in wanted])


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

"""Tables of URLs and captions: parquet, csv, tsv, jsonl txt; files, folders, globs, any store."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.identity import UID_TYPE, uid_array
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_source
from winnow.contracts.source import Source, SourceFile
from winnow.stages.sources import _readers
from winnow.stages.sources._files import find_files
from winnow.stages.sources._readers import TYPES, TableFormat, TableOptions
from winnow.stages.sources._text_rows import TextOptions

logger = logging.getLogger(__name__)

RESERVED = ("uid", "key")
"""Columns that Winnow writes itself, beside those of the stages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which column of the files becomes which column of the rows.

    wanted: columns to read, by their names in the files, as plain types.  names: theirs in the
    rows, same order.  url, text: their names in the files.  known: the columns that a file may
    have; None where others are left out on purpose.
    """

    wanted: pa.Schema
    names: tuple[str, ...]
    url: str
    text: str | None
    known: frozenset[str] | None

    def row_schema(self) -> pa.Schema:
        """Return ``url``, ``text`` and the kept columns."""
        kept = [
            field.with_name(name)
            for field, name in zip(self.wanted, self.names, strict=True)
            if field.name not in (self.url, self.text)
        ]
        return pa.schema([("url", pa.string()), ("text", pa.string()), *kept])


@register_source("url_table", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class UrlTable(Source):
    """Rows of a table, one per URL; every other column is kept, whatever its type.

    Reads:  path: a file, folder, glob (``**`` too), brace range or list of these, local or any
            fsspec URL. Formats by extension: .parquet .pq .csv .tsv .tab .jsonl .ndjson .txt, each
            also .gz .bz2 .xz .zst; ``format`` overrides. In a folder, other extensions and names
            that start with "." or "_" are left out.
    Writes: url: string, verbatim; null where the table has null.
            text: string, verbatim; null where the table has null or ``text_column`` is null.
            kept columns: parquet types, simplified (large, view and dictionary strings are string;
            large lists are lists; extension types their storage); string for csv, tsv, jsonl unless
            ``types`` says otherwise. The first file, by name, decides names, order and types.
    Identity: url, text.
    Cost:   one forward read; memory is one batch (remote parquet: one row group).
    Fails:  RecipeError: a column is not there, or a name is taken. SetupError: no file.
            ShardError with file and line: a row that cannot be split (other number of fields than
            the header, broken quoting), not the encoding, not JSON, a value that is not its type, a
            file with other columns than the first, a cut or corrupt file.

    path, format: see Reads.  url_column, text_column: their names in the files.
    keep: "all", or the names of the other columns to keep.  rename: old name -> new name.
    types: column -> "string" | "bool" | "int64" | "float64" | "date" | "timestamp" |
        "timestamp_utc"; for csv, tsv and jsonl, whose values have no type of their own. JSON values
        other than strings are kept as JSON text.
    bad_rows: "error" fails the file at the first bad row; "null" makes it a row of nulls (a value
        that is not its type: a null), counted in the log.
    column_names: for csv and tsv without a header line.  delimiter: one character instead of the
        comma or tab.  quoted: false where quotes are plain text (many tsv files); by default csv
        and tsv are quoted, and a tsv whose quoted fields span lines and tabs is refused as unclear.
    encoding: of text formats; any that keeps ASCII. An empty csv or tsv field is null; blank lines
        are no rows; a lone surrogate in JSON becomes U+FFFD.
    """

    path: str | tuple[str, ...]
    format: TableFormat | None = result(None)
    url_column: str = result("url")
    text_column: str | None = result("text")
    keep: Literal["all"] | tuple[str, ...] = result("all")
    rename: Mapping[str, str] | None = result(None)
    types: Mapping[str, str] | None = result(None)
    bad_rows: Literal["error", "null"] = result("error")
    column_names: tuple[str, ...] | None = result(None)
    delimiter: str | None = result(None)
    quoted: bool | None = result(None)
    encoding: str = result("utf-8")
    _layout: Layout | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False, metadata={"role": "effort"}
    )

    def __post_init__(self) -> None:
        if self.format not in (None, *get_args(TableFormat)):
            allowed = ", ".join(get_args(TableFormat))
            msg = f"url_table: format={self.format!r} is not a format; use one of {allowed}"
            raise RecipeError(msg)
        if self.url_column == self.text_column:
            msg = (
                f"url_table: url_column and text_column are both {self.url_column!r}; set "
                "text_column: null where there is no text"
            )
            raise RecipeError(msg)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            msg = f"url_table: delimiter={self.delimiter!r} must be one character, not a quote"
            raise RecipeError(msg)
        for name, kind in (self.types or {}).items():
            if kind not in TYPES:
                msg = f"url_table: types: {name}: {kind!r} is not one of {', '.join(TYPES)}"
                raise RecipeError(msg)
        names = self.column_names or ()
        if len(set(names)) < len(names):
            msg = f"url_table: column_names={list(names)} names a column twice"
            raise RecipeError(msg)
        _check_encoding(self.encoding)

    def files(self) -> list[SourceFile]:
        """Return the tables, sorted by name."""

        def matches(name: str) -> bool:
            found = _readers.extension_format(name)
            return found is not None and self.format in (None, found)

        kinds = (
            f".{self.format}" if self.format else ", ".join(f".{e}" for e in _readers.EXTENSIONS)
        )
        return find_files("url_table", self.path, matches, f"{kinds} file")

    def schema(self) -> pa.Schema:
        """Return url, text and the kept columns, from the first file that has any column."""
        return self._columns().row_schema()

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one table."""
        layout = self._columns()
        schema = layout.row_schema()
        nulls = 0
        for batch in _readers.batches(file.path, self._options(), layout.wanted, layout.known):
            columns = dict(zip(layout.names, batch.columns, strict=True))
            url, text = batch.column(layout.url), pa.nulls(batch.num_rows, pa.string())
            if layout.text is not None:
                text = batch.column(layout.text)
            columns |= {"url": url, "text": text}
            nulls += url.null_count
            uid = uid_array([url.to_pylist(), text.to_pylist()])
            yield pa.RecordBatch.from_arrays(
                [uid, *(columns[name] for name in schema.names)],
                schema=pa.schema([("uid", UID_TYPE), *schema]),
            )
        if nulls:
            logger.warning("%s: %d rows have no url", file.name, nulls)

    def _options(self) -> TableOptions:
        return TableOptions(
            format=self.format,
            bad_rows=self.bad_rows,
            text=TextOptions(
                column_names=self.column_names,
                delimiter=self.delimiter,
                quoted=self.quoted,
                encoding=self.encoding,
                line_column=self.url_column,
            ),
        )

    def _columns(self) -> Layout:
        """Find the layout once; it travels with the pickled source."""
        if self._layout is None:
            files = self.files()
            found = self._layout_of(files)
            object.__setattr__(self, "_layout", found)
            return found
        return self._layout

    def _layout_of(self, files: Sequence[SourceFile]) -> Layout:
        for file in files:
            try:
                columns = _readers.header(file.path, self._options())
            except ShardError as error:
                msg = f"url_table: {error}"
                raise SetupError(msg) from error
            if columns is not None:
                only_urls = _readers.format_of(file.path, self._options()) == "txt"
                return self._choose(columns, file, only_urls=only_urls)
        return Layout(
            wanted=pa.schema([(self.url_column, pa.string())]),
            names=("url",),
            url=self.url_column,
            text=None,
            known=None,
        )

    def _choose(self, columns: pa.Schema, file: SourceFile, *, only_urls: bool) -> Layout:
        text = None if only_urls else self.text_column
        needed = {"url_column": self.url_column, "text_column": text}
        for parameter, name in needed.items():
            if name is not None:
                _check_text(parameter, name, columns, file)
        main = [name for name in needed.values() if name is not None]
        chosen = columns.names if self.keep == "all" else dict.fromkeys(self.keep)
        kept = [name for name in chosen if name not in main]
        for name in (*kept, *(self.rename or ()), *(self.types or ())):
            if name not in columns.names:
                msg = f"url_table: {_absent(name, columns, file)}"
                raise RecipeError(msg)
        for name in (*(self.rename or ()), *(self.types or ())):
            if name not in kept:
                msg = f"url_table: rename and types are for kept columns, and {name!r} is not one"
                raise RecipeError(msg)
        renamed = [(self.rename or {}).get(name, name) for name in kept]
        _check_taken(renamed, kept)
        names = ["url", "text"][: len(main)] + renamed
        types = {name: TYPES[kind] for name, kind in (self.types or {}).items()}
        wanted = [(name, pa.string()) for name in main]
        wanted += [(name, types.get(name, columns.field(name).type)) for name in kept]
        return Layout(
            wanted=pa.schema(wanted),
            names=tuple(names),
            url=self.url_column,
            text=text,
            known=frozenset(columns.names) if self.keep == "all" else None,
        )


def _check_encoding(encoding: str) -> None:
    ascii_text = bytes(range(128))
    try:
        keeps = ascii_text.decode(encoding) == ascii_text.decode("ascii")
    except (LookupError, ValueError):
        keeps = False
    if not keeps:
        msg = (
            f"url_table: encoding={encoding!r} is no text encoding that keeps ASCII; use utf-8, "
            "latin-1, cp1252, shift_jis, ..., and convert UTF-16 files"
        )
        raise RecipeError(msg)


def _check_text(parameter: str, name: str, columns: pa.Schema, file: SourceFile) -> None:
    if name not in columns.names:
        fix = f"set {parameter}" + (", or null for no text" if parameter == "text_column" else "")
        msg = f"url_table: {_absent(name, columns, file)}; {fix}"
        raise RecipeError(msg)
    kind = columns.field(name).type
    texts = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_binary)
    if not any(is_text(kind) for is_text in texts):
        msg = f"url_table: {parameter}={name!r} is {kind} in {file.name}, not text"
        raise RecipeError(msg)


def _absent(name: str, columns: pa.Schema, file: SourceFile) -> str:
    near = difflib.get_close_matches(name, columns.names, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]!r})" if near else ""
    return f"there is no column {name!r} in {file.name}; it has {', '.join(columns.names)}{hint}"


def _check_taken(names: Sequence[str], old: Sequence[str]) -> None:
    """Refuse two columns with one name; DuckDB and many readers do not see case."""
    seen = dict.fromkeys((*RESERVED, "url", "text"), "Winnow's own")
    for name, source in zip(names, old, strict=True):
        lower = name.lower()
        if lower in seen:
            msg = (
                f"url_table: the column {source!r} would be {name!r}, but {seen[lower]} column "
                f"has that name (case does not count); set rename: {{{source}: original_{lower}}}"
            )
            raise RecipeError(msg)
        seen[lower] = f"another ({source!r})"

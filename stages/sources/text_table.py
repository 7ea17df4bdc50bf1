"""Tables of documents: parquet, csv, tsv, jsonl, txt; files, folders, globs, any store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from winnow.contracts.errors import RecipeError
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_source
from winnow.stages.sources._readers import TableFormat
from winnow.stages.sources._table_columns import Layout
from winnow.stages.sources._table_source import TableSource


@register_source("text_table", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable(TableSource):
    """Rows of a table, one per document; every other column is kept, whatever its type.

    Reads:  path: a file, folder, glob (``**`` too), brace range or list of these, local or any
            fsspec URL. Formats by extension: .parquet .pq .csv .tsv .tab .jsonl .ndjson .txt (a
            document per line, without outer white space; blank lines are none), each also .gz .bz2
            .xz .zst; ``format`` overrides. In a folder, other extensions and names that start with
            "." or "_" are left out.
    Writes: text: string, verbatim; null where the table has null.
            id: string, if ``id`` names a column; null where the table has null.
            kept columns: parquet types, simplified (large, view and dictionary strings are string;
            large lists are lists; extension types their storage); string for csv, tsv, jsonl unless
            ``types`` says otherwise. The first file, by name, decides names, order and types.
    Identity: text, and id if there is one: without it equal documents are one row that repeats
            (``repeated_rows``).
    Cost:   one forward read; memory is one batch (remote parquet: one row group).
    Fails:  RecipeError: a column is not there, or a name is taken. SetupError: no file.
            ShardError with file and line: a row that cannot be split (other number of fields than
            the header, broken quoting), not the encoding, not JSON, a value that is not its type, a
            line over 64 MB, a file with other columns than the first, a cut or corrupt file.

    path, format: see Reads.  text_column: its name in the files.  id: that of the identifier;
        null = none.
    keep: "all", or the names of the other columns to keep.  rename: old name -> new name.
    types: column -> "string" | "bool" | "int64" | "float64" | "date" | "timestamp" |
        "timestamp_utc"; for csv, tsv and jsonl, whose values have no type of their own. JSON values
        other than strings are kept as JSON text.
    bad_rows: "error" fails the file at the first bad row; "null" makes it a row of nulls (a value
        that is not its type: a null).
    column_names: for csv and tsv without a header line.  delimiter: one character instead of the
        comma or tab.  quoted: false where quotes are plain text (many tsv files).
    encoding: of text formats; any that keeps ASCII. An empty csv or tsv field is null; a lone
        surrogate in JSON becomes U+FFFD.
    """

    path: str | tuple[str, ...]
    format: TableFormat | None = result(None)
    text_column: str = result("text")
    id: str | None = result(None)
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
        if not self.text_column or self.id in ("", self.text_column):
            msg = (
                f"text_table: text_column={self.text_column!r} and id={self.id!r} must name two "
                "columns; leave id out where there is none"
            )
            raise RecipeError(msg)
        self._check_reading()

    def _main(self) -> dict[str, tuple[str, str | None]]:
        main: dict[str, tuple[str, str | None]] = {"text": ("text_column", self.text_column)}
        return main if self.id is None else main | {"id": ("id", self.id)}

"""Which column of a table becomes which column of the rows: chosen once, from the first file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.source import SourceFile
from winnow.stages.sources import _readers
from winnow.stages.sources._files import find_files
from winnow.stages.sources._media_refs import check_no_references
from winnow.stages.sources._readers import TYPES, TableFormat, TableOptions

RESERVED = ("uid", "key")
"""Columns that Winnow writes itself, beside those of the stages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What is read of each file.

    wanted: columns to read, by their names in the files, as plain types.  names: theirs in the
    rows, same order.  main: the source's own columns, first in the rows, as strings: name in the
    rows -> name in the files, None where there is none.  known: the columns that a file may have;
    None where others are left out on purpose.
    """

    wanted: pa.Schema
    names: tuple[str, ...]
    main: Mapping[str, str | None]
    known: frozenset[str] | None

    def row_schema(self) -> pa.Schema:
        """Return the main columns and the kept ones."""
        kept = [
            field.with_name(name)
            for field, name in zip(self.wanted, self.names, strict=True)
            if name not in self.main
        ]
        return pa.schema([*((name, pa.string()) for name in self.main), *kept])

    def columns(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Return the columns of ``row_schema`` of rows that were read; null where there is none."""
        found = dict(zip(self.names, batch.columns, strict=True))
        nothing = pa.nulls(batch.num_rows, pa.string())
        return [found.get(name, nothing) for name in self.row_schema().names]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chooser:
    """What a source asks for. main: name in the rows -> (parameter, name in the files or None)."""

    source: str
    main: Mapping[str, tuple[str, str | None]]
    keep: Literal["all"] | tuple[str, ...]
    rename: Mapping[str, str]
    types: Mapping[str, str]

    def layout(self, files: Sequence[SourceFile], options: TableOptions) -> Layout:
        """Return the layout by the first file that has any column. Raises RecipeError, SetupError.

        A txt file has one column, the first main one.
        """
        first, *others = self.main
        for file in files:
            try:
                columns = _readers.header(file.path, options)
            except ShardError as error:
                msg = f"{self.source}: {error}"
                raise SetupError(msg) from error
            if columns is not None:
                named = {row: name for row, (_, name) in self.main.items()}
                if _readers.format_of(file.path, options) == "txt":
                    named |= dict.fromkeys(others)
                return self._choose(columns, file, named)
        name = self.main[first][1]
        return Layout(
            wanted=pa.schema([(name, pa.string())]),
            names=(first,),
            main={first: name, **dict.fromkeys(others)},
            known=None,
        )

    def _choose(
        self, columns: pa.Schema, file: SourceFile, named: Mapping[str, str | None]
    ) -> Layout:
        for row, name in named.items():
            if name is not None:
                self._check_text(self.main[row][0], name, columns, file)
        main = {row: name for row, name in named.items() if name is not None}
        chosen = columns.names if self.keep == "all" else dict.fromkeys(self.keep)
        kept = [name for name in chosen if name not in main.values()]
        for name in (*kept, *self.rename, *self.types):
            if name not in columns.names:
                msg = f"{self.source}: {_absent(name, columns, file)}"
                raise RecipeError(msg)
        for name in (*self.rename, *self.types):
            if name not in kept:
                msg = (
                    f"{self.source}: rename and types are for kept columns, and {name!r} is not one"
                )
                raise RecipeError(msg)
        renamed = [self.rename.get(name, name) for name in kept]
        self._check_taken(renamed, kept)
        types = {name: TYPES[kind] for name, kind in self.types.items()}
        wanted = [(name, pa.string()) for name in main.values()]
        wanted += [(name, types.get(name, columns.field(name).type)) for name in kept]
        names = dict(zip(kept, renamed, strict=True))
        check_no_references(self.source, pa.schema(wanted), names)
        return Layout(
            wanted=pa.schema(wanted),
            names=(*main, *renamed),
            main=named,
            known=frozenset(columns.names) if self.keep == "all" else None,
        )

    def _check_text(self, parameter: str, name: str, columns: pa.Schema, file: SourceFile) -> None:
        if name not in columns.names:
            first = parameter == next(iter(self.main.values()))[0]
            fix = f"set {parameter}" + ("" if first else ", or null for no text")
            msg = f"{self.source}: {_absent(name, columns, file)}; {fix}"
            raise RecipeError(msg)
        kind = columns.field(name).type
        texts = [pa.types.is_string, pa.types.is_binary, pa.types.is_large_binary]
        texts += [pa.types.is_integer] if parameter == "id" else []
        if not any(is_text(kind) for is_text in texts):
            msg = f"{self.source}: {parameter}={name!r} is {kind} in {file.name}, not text"
            raise RecipeError(msg)

    def _check_taken(self, names: Sequence[str], old: Sequence[str]) -> None:
        """Refuse two columns with one name; DuckDB and many readers do not see case."""
        seen = dict.fromkeys((*RESERVED, *self.main), "Winnow's own")
        for name, source in zip(names, old, strict=True):
            lower = name.lower()
            if lower in seen:
                msg = (
                    f"{self.source}: the column {source!r} would be {name!r}, but {seen[lower]} "
                    f"column has that name (case does not count); set rename: {{{source}: "
                    f"original_{lower}}}"
                )
                raise RecipeError(msg)
            seen[lower] = f"another ({source!r})"


def find_tables(
    source: str, path: str | tuple[str, ...], form: TableFormat | None
) -> list[SourceFile]:
    """Return the tables that ``path`` names, sorted by name."""

    def matches(name: str) -> bool:
        found = _readers.extension_format(name)
        return found is not None and form in (None, found)

    kinds = f".{form}" if form else ", ".join(f".{e}" for e in _readers.EXTENSIONS)
    return find_files(source, path, matches, f"{kinds} file")


def check_reading(
    source: str,
    *,
    form: str | None,
    delimiter: str | None,
    types: Mapping[str, str],
    column_names: Sequence[str],
    encoding: str,
) -> None:
    """Raise RecipeError for parameters of reading that cannot be meant."""
    if form not in (None, *get_args(TableFormat)):
        allowed = ", ".join(get_args(TableFormat))
        msg = f"{source}: format={form!r} is not a format; use one of {allowed}"
        raise RecipeError(msg)
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        msg = f"{source}: delimiter={delimiter!r} must be one character, not a quote"
        raise RecipeError(msg)
    for name, kind in types.items():
        if kind not in TYPES:
            msg = f"{source}: types: {name}: {kind!r} is not one of {', '.join(TYPES)}"
            raise RecipeError(msg)
    if len(set(column_names)) < len(column_names):
        msg = f"{source}: column_names={list(column_names)} names a column twice"
        raise RecipeError(msg)
    _check_encoding(source, encoding)


def _check_encoding(source: str, encoding: str) -> None:
    ascii_text = bytes(range(128))
    try:
        keeps = ascii_text.decode(encoding) == ascii_text.decode("ascii")
    except (LookupError, ValueError):
        keeps = False
    if not keeps:
        msg = (
            f"{source}: encoding={encoding!r} is no text encoding that keeps ASCII; use utf-8, "
            "latin-1, cp1252, shift_jis, ..., and convert UTF-16 files"
        )
        raise RecipeError(msg)


def _absent(name: str, columns: pa.Schema, file: SourceFile) -> str:
    near = difflib.get_close_matches(name, columns.names, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]!r})" if near else ""
    return f"there is no column {name!r} in {file.name}; it has {', '.join(columns.names)}{hint}"

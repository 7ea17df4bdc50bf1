"""Which column of a table becomes which column of the rows: chosen once, from the first file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.source import SourceFile
from winnow.stages.sources import _readers
from winnow.stages.sources._media_refs import check_no_references
from winnow.stages.sources._readers import TYPES, TableOptions

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

    def kept(self) -> pa.Schema:
        """Return the columns of the rows that are not main."""
        fields = zip(self.wanted, self.names, strict=True)
        return pa.schema([f.with_name(name) for f, name in fields if name not in self.main])

    def columns(self, batch: pa.RecordBatch) -> dict[str, pa.Array]:
        """Return the main and the kept columns of rows that were read, by their names in the rows;
        null where there is none."""
        nothing = pa.nulls(batch.num_rows, pa.string())
        return dict.fromkeys(self.main, nothing) | dict(zip(self.names, batch.columns, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chooser:
    """What a source asks for.

    main: name in the rows -> (parameter, name in the files or None); the first one has a name.
    reserved: further names that no kept column may have.  txt: whether a txt file has the first
    main column alone; else it must have all.
    """

    source: str
    main: Mapping[str, tuple[str, str | None]]
    reserved: Sequence[str]
    txt: bool
    keep: Literal["all"] | tuple[str, ...]
    rename: Mapping[str, str]
    types: Mapping[str, str]

    def layout(self, files: Sequence[SourceFile], options: TableOptions) -> Layout:
        """Return the layout by the first file with any column; RecipeError, SetupError."""
        named = {row: name for row, (_, name) in self.main.items()}
        for file in files:
            try:
                columns = _readers.header(file.path, options)
            except ShardError as error:
                msg = f"{self.source}: {error}"
                raise SetupError(msg) from error
            if columns is not None:
                if self.txt and _readers.format_of(file.path, options) == "txt":
                    named |= dict.fromkeys(list(named)[1:])
                return self._choose(columns, file, named)
        main = {row: name for row, name in named.items() if name is not None}
        wanted = pa.schema([(name, pa.string()) for name in main.values()])
        return Layout(wanted=wanted, names=tuple(main), main=named, known=None)

    def _choose(
        self, columns: pa.Schema, file: SourceFile, named: Mapping[str, str | None]
    ) -> Layout:
        main = {row: name for row, name in named.items() if name is not None}
        for row, name in main.items():
            self._check_text(row, name, columns, file)
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

    def _check_text(self, row: str, name: str, columns: pa.Schema, file: SourceFile) -> None:
        parameter, _ = self.main[row]
        if name not in columns.names:
            what = parameter.removesuffix("_column")
            first = row == next(iter(self.main))
            fix = f"set {parameter}" + ("" if first else f", or null for no {what}")
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
        seen = dict.fromkeys((*RESERVED, *self.main, *self.reserved), "Winnow's own")
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


def _absent(name: str, columns: pa.Schema, file: SourceFile) -> str:
    near = difflib.get_close_matches(name, columns.names, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]!r})" if near else ""
    return f"there is no column {name!r} in {file.name}; it has {', '.join(columns.names)}{hint}"

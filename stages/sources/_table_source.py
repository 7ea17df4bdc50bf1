"""What sources of tables share: how files are found and read, and the columns of the rows."""

from __future__ import annotations

import abc
import logging
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, get_args

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import UID_TYPE, uid_array
from winnow.contracts.source import Source, SourceFile
from winnow.stages.sources import _readers
from winnow.stages.sources._files import find_files
from winnow.stages.sources._readers import TYPES, TableFormat, TableOptions
from winnow.stages.sources._table_columns import Chooser, Layout
from winnow.stages.sources._text_rows import TextOptions

logger = logging.getLogger(__name__)


class TableSource(Source):
    """Base of the sources of tables.

    Its attributes are parameters, which each source declares as fields, in an order of its own:
    see UrlTable. ``_layout`` is the layout once it was chosen; it travels with the pickled source.
    """

    formats: ClassVar[tuple[TableFormat, ...]] = get_args(TableFormat)
    """The formats that are taken where files are found by their names."""

    path: str | tuple[str, ...]
    format: TableFormat | None
    keep: Literal["all"] | tuple[str, ...]
    rename: Mapping[str, str] | None
    types: Mapping[str, str] | None
    bad_rows: Literal["error", "null"]
    column_names: tuple[str, ...] | None
    delimiter: str | None
    quoted: bool | None
    encoding: str
    _layout: Layout | None

    @abc.abstractmethod
    def _main(self) -> dict[str, tuple[str, str | None]]:
        """Return the source's own columns: name in the rows -> parameter, name in the files.

        The first has a name in the files; it is what the lines of a txt file are.
        """

    def _reserved(self) -> list[str]:
        """Return names that no kept column may have, beside those of ``_main``."""
        return []

    def files(self) -> list[SourceFile]:
        """Return the tables, sorted by name."""

        def matches(name: str) -> bool:
            found = _readers.extension_format(name)
            return found in self.formats and self.format in (None, found)

        extensions = [e for e, form in _readers.EXTENSIONS.items() if form in self.formats]
        kinds = ", ".join(f".{e}" for e in ([self.format] if self.format else extensions))
        return find_files(self.name, self.path, matches, f"{kinds} file")

    def schema(self) -> pa.Schema:
        """Return the main and the kept columns, from the first file that has any column."""
        layout = self._columns()
        return pa.schema([*((name, pa.string()) for name in layout.main), *layout.kept()])

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one table; their identity is the main columns."""
        main = list(self._main())
        schema = pa.schema([("uid", UID_TYPE), *self.schema()])
        nulls = 0
        for columns in self._batches(file):
            nulls += columns[main[0]].null_count
            columns["uid"] = uid_array([columns[name].to_pylist() for name in main])
            arrays = [columns[name] for name in schema.names]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
        if nulls:
            logger.warning("%s: %d rows have no %s", file.name, nulls, main[0])

    def _batches(self, file: SourceFile) -> Iterator[dict[str, pa.Array]]:
        """Yield the main and the kept columns of one table, by their names in the rows."""
        layout = self._columns()
        for batch in _readers.batches(file.path, self._options(), layout.wanted, layout.known):
            yield layout.columns(batch)

    def _options(self) -> TableOptions:
        _, line_column = next(iter(self._main().values()))
        assert line_column is not None
        return TableOptions(
            format=self.format,
            bad_rows=self.bad_rows,
            text=TextOptions(
                column_names=self.column_names,
                delimiter=self.delimiter,
                quoted=self.quoted,
                encoding=self.encoding,
                line_column=line_column,
            ),
        )

    def _columns(self) -> Layout:
        """Choose the layout once."""
        if self._layout is None:
            chooser = Chooser(
                source=self.name,
                main=self._main(),
                reserved=self._reserved(),
                txt="txt" in self.formats,
                keep=self.keep,
                rename=self.rename or {},
                types=self.types or {},
            )
            layout = chooser.layout(self.files(), self._options())
            object.__setattr__(self, "_layout", layout)
            return layout
        return self._layout

    def _check_reading(self) -> None:
        """Raise RecipeError for parameters of reading that cannot be meant."""
        if self.format not in (None, *get_args(TableFormat)):
            allowed = ", ".join(get_args(TableFormat))
            msg = f"{self.name}: format={self.format!r} is not a format; use one of {allowed}"
            raise RecipeError(msg)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            msg = f"{self.name}: delimiter={self.delimiter!r} must be one character, not a quote"
            raise RecipeError(msg)
        for name, kind in (self.types or {}).items():
            if kind not in TYPES:
                msg = f"{self.name}: types: {name}: {kind!r} is not one of {', '.join(TYPES)}"
                raise RecipeError(msg)
        names = list(self.column_names or ())
        if len(set(names)) < len(names):
            msg = f"{self.name}: column_names={names} names a column twice"
            raise RecipeError(msg)
        if not _keeps_ascii(self.encoding):
            msg = (
                f"{self.name}: encoding={self.encoding!r} is no text encoding that keeps ASCII; "
                "use utf-8, latin-1, cp1252, shift_jis, ..., and convert UTF-16 files"
            )
            raise RecipeError(msg)


def _keeps_ascii(encoding: str) -> bool:
    ascii_text = bytes(range(128))
    try:
        return ascii_text.decode(encoding) == ascii_text.decode("ascii")
    except (LookupError, ValueError):
        return False

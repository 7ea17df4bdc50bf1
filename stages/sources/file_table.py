"""Tables whose columns name local media files: pairs, triplets, any columns beside them."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

from winnow.contracts.errors import RecipeError, SetupError, ShardError
from winnow.contracts.identity import UID_TYPE, uid_array
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_source
from winnow.contracts.source import Source, SourceFile
from winnow.stages.sources import _readers
from winnow.stages.sources._files import find_files
from winnow.stages.sources._media_refs import (
    FoundFile,
    check_no_references,
    file_below,
    folder_of,
    ref_array,
)
from winnow.stages.sources._readers import TYPES, TableFormat, TableOptions
from winnow.stages.sources._text_rows import TextOptions

logger = logging.getLogger(__name__)

MEDIA = ("image", "audio", "video")
ERROR = "file_error"
READERS = 8
"""Files that are read at once: a store answers many requests as fast as one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which column of the tables becomes which column of the rows.

    wanted: columns to read, by their names in the files.  media: medium -> its column of paths.
    text: the column of texts.  kept: the other columns, old name -> name in the rows.
    known: the columns that a file may have; None where others are left out on purpose.
    """

    wanted: pa.Schema
    media: Mapping[str, str]
    text: str | None
    kept: Mapping[str, str]
    known: frozenset[str] | None

    def row_schema(self) -> pa.Schema:
        """Return the columns of every row."""
        fields = [("text", pa.string())]
        fields += [(f"{medium}_path", pa.string()) for medium in self.media]
        fields += [(f"{medium}_ref", MEDIA_REF) for medium in self.media]
        fields += [(new, self.wanted.field(old).type) for old, new in self.kept.items()]
        return pa.schema([*fields, (ERROR, pa.string())])


@register_source("file_table", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class FileTable(Source):
    """Rows of a table that names media files; a row with an image and an audio is a triplet.

    Reads:  path: tables as ``url_table`` reads them: a file, folder, glob, brace range or list of
            these, local or any fsspec URL; .parquet .pq .csv .tsv .tab .jsonl .ndjson, each also
            .gz .bz2 .xz .zst. The files that they name, below ``root``.
    Writes: text: string, verbatim; null where the table has null or ``text_column`` is null.
            image_path, audio_path, video_path: string, verbatim, of the media that have a column;
            null where the table has null.
            image_ref, audio_ref, video_ref: MEDIA_REF of the whole file; null where the path is
            null or blank (no code), or file_error has a code of this medium.
            kept columns: their types as ``url_table`` gives them.
            file_error: string; null, or of the first medium that has one: image_missing (there is
            no such file), image_outside (it is not below the root), image_unreadable (no
            permission, no regular file, no such name); audio_... and video_... the same.
    Identity: text, and of image, audio and video by turns the path without "." and the digest.
    Cost:   one read of every file, for the digest, eight at a time; one forward read of the table.
    Fails:  RecipeError: a column is not there, a name is taken, no medium has a column.
            SetupError: no file. ShardError with file and line, as ``url_table`` says.

    The table is not trusted: it can name files below the root and no others. A path that is
    absolute, has "..", "::" or "://", or leads out of the root by a link is *_outside.
    A table is read again when the table changes; a file that changes under it gives null media.

    root: the folder that paths are relative to; null = the folder of each table.
    image_column, audio_column, video_column: the columns with the paths; null = no such medium.
    text_column: the column with the text; null = none.
    keep: "all", or the names of the other columns to keep.  rename: old name -> new name, of kept
        columns.  format, types, bad_rows, column_names, delimiter, quoted, encoding: as in
        ``url_table``.
    """

    path: str | tuple[str, ...]
    root: str | None = result(None)
    image_column: str | None = result(None)
    audio_column: str | None = result(None)
    video_column: str | None = result(None)
    text_column: str | None = result("text")
    keep: Literal["all"] | tuple[str, ...] = result("all")
    rename: Mapping[str, str] | None = result(None)
    types: Mapping[str, str] | None = result(None)
    format: TableFormat | None = result(None)
    bad_rows: Literal["error", "null"] = result("error")
    column_names: tuple[str, ...] | None = result(None)
    delimiter: str | None = result(None)
    quoted: bool | None = result(None)
    encoding: str = result("utf-8")
    _layout: Layout | None = dataclasses.field(
        default=None, init=False, repr=False, compare=False, metadata={"role": "effort"}
    )

    def __post_init__(self) -> None:
        media = self._media()
        if not media:
            msg = "file_table: no medium; set image_column, audio_column or video_column"
            raise RecipeError(msg)
        main = [*media.values(), *([self.text_column] if self.text_column else [])]
        for name in main:
            if not name or main.count(name) > 1:
                msg = f"file_table: the column {name!r} is named twice; name each column once"
                raise RecipeError(msg)
        if self.format not in (None, *get_args(TableFormat)) or self.format == "txt":
            msg = f"file_table: format={self.format!r}; use parquet, csv, tsv or jsonl"
            raise RecipeError(msg)
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            msg = f"file_table: delimiter={self.delimiter!r} must be one character, not a quote"
            raise RecipeError(msg)
        for name, kind in (self.types or {}).items():
            if kind not in TYPES:
                msg = f"file_table: types: {name}: {kind!r} is not one of {', '.join(TYPES)}"
                raise RecipeError(msg)

    def files(self) -> list[SourceFile]:
        """Return the tables, sorted by name."""

        def matches(name: str) -> bool:
            found = _readers.extension_format(name)
            return found not in (None, "txt") and self.format in (None, found)

        kinds = ", ".join(f".{e}" for e in _readers.EXTENSIONS if e != "txt")
        return find_files("file_table", self.path, matches, f"{kinds} file")

    def schema(self) -> pa.Schema:
        """Return the columns, from the first file that has any."""
        return self._columns().row_schema()

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one table."""
        layout = self._columns()
        schema = pa.schema([("uid", UID_TYPE), *layout.row_schema()])
        root = folder_of(file.path) if self.root is None else self.root
        lost = 0
        with ThreadPoolExecutor(READERS) as pool:
            for batch in _readers.batches(file.path, self._options(), layout.wanted, layout.known):
                found = {
                    medium: _find(pool, root, batch.column(column).to_pylist())
                    for medium, column in layout.media.items()
                }
                rows = _rows(batch, layout, found, schema)
                lost += batch.num_rows - rows.column(ERROR).null_count
                yield rows
        if lost:
            logger.warning("%s: %d rows name a file that cannot be read", file.name, lost)

    def _media(self) -> dict[str, str]:
        columns = (self.image_column, self.audio_column, self.video_column)
        return {m: c for m, c in zip(MEDIA, columns, strict=True) if c is not None}

    def _options(self) -> TableOptions:
        return TableOptions(
            format=self.format,
            bad_rows=self.bad_rows,
            text=TextOptions(
                column_names=self.column_names,
                delimiter=self.delimiter,
                quoted=self.quoted,
                encoding=self.encoding,
                line_column=next(iter(self._media().values())),
            ),
        )

    def _columns(self) -> Layout:
        """Find the layout once; it travels with the pickled source."""
        if self._layout is None:
            object.__setattr__(self, "_layout", self._layout_of(self.files()))
        assert self._layout is not None
        return self._layout

    def _layout_of(self, files: Sequence[SourceFile]) -> Layout:
        for file in files:
            try:
                columns = _readers.header(file.path, self._options())
            except ShardError as error:
                msg = f"file_table: {error}"
                raise SetupError(msg) from error
            if columns is not None:
                return self._choose(columns, file)
        main = [*self._media().values(), *([self.text_column] if self.text_column else [])]
        wanted = pa.schema([(name, pa.string()) for name in main])
        return Layout(
            wanted=wanted, media=self._media(), text=self.text_column, kept={}, known=None
        )

    def _choose(self, columns: pa.Schema, file: SourceFile) -> Layout:
        media = self._media()
        main = [*media.values(), *([self.text_column] if self.text_column else [])]
        for name in main:
            _check_text(name, columns, file)
        chosen = columns.names if self.keep == "all" else dict.fromkeys(self.keep)
        kept = [name for name in chosen if name not in main]
        for name in (*kept, *(self.rename or ()), *(self.types or ())):
            if name not in columns.names:
                msg = f"file_table: {_absent(name, columns, file)}"
                raise RecipeError(msg)
            if name not in kept:
                msg = f"file_table: rename and types are for kept columns, and {name!r} is not one"
                raise RecipeError(msg)
        names = {name: (self.rename or {}).get(name, name) for name in kept}
        _check_taken(names, media)
        types = {name: TYPES[kind] for name, kind in (self.types or {}).items()}
        wanted = [(name, pa.string()) for name in main]
        wanted += [(name, types.get(name, columns.field(name).type)) for name in kept]
        check_no_references("file_table", pa.schema(wanted), names)
        return Layout(
            wanted=pa.schema(wanted),
            media=media,
            text=self.text_column,
            kept=names,
            known=frozenset(columns.names) if self.keep == "all" else None,
        )


def _find(pool: ThreadPoolExecutor, root: str, paths: Sequence[str | None]) -> list[FoundFile]:
    """Look at every file once, however many rows name it."""
    distinct = list(dict.fromkeys(paths))
    found = dict(zip(distinct, pool.map(lambda p: file_below(root, p), distinct), strict=True))
    return [found[path] for path in paths]


def _rows(
    batch: pa.RecordBatch,
    layout: Layout,
    found: Mapping[str, Sequence[FoundFile]],
    schema: pa.Schema,
) -> pa.RecordBatch:
    text = pa.nulls(batch.num_rows, pa.string())
    if layout.text is not None:
        text = batch.column(layout.text)
    identity: list[Sequence[str | bytes | None]] = [text.to_pylist()]
    columns: dict[str, pa.Array] = {"text": text}
    codes: list[str | None] = [None] * batch.num_rows
    for medium, column in layout.media.items():
        files = found[medium]
        identity.append([file.relative for file in files])
        identity.append([file.ref and file.ref[3] for file in files])
        columns[f"{medium}_path"] = batch.column(column)
        columns[f"{medium}_ref"] = ref_array([file.ref for file in files])
        for row, file in enumerate(files):
            if codes[row] is None and file.problem is not None:
                codes[row] = f"{medium}_{file.problem}"
    columns |= {new: batch.column(old) for old, new in layout.kept.items()}
    columns["uid"] = uid_array(identity)
    columns[ERROR] = pa.array(codes, pa.string())
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


def _check_text(name: str, columns: pa.Schema, file: SourceFile) -> None:
    if name not in columns.names:
        fix = "; set text_column, or null for no text" if name == "text" else ""
        msg = f"file_table: {_absent(name, columns, file)}{fix}"
        raise RecipeError(msg)
    kind = columns.field(name).type
    if not (pa.types.is_string(kind) or pa.types.is_binary(kind)):
        msg = f"file_table: {name!r} is {kind} in {file.name}, not text"
        raise RecipeError(msg)


def _absent(name: str, columns: pa.Schema, file: SourceFile) -> str:
    near = difflib.get_close_matches(name, columns.names, n=1, cutoff=0.5)
    hint = f" (nearest: {near[0]!r})" if near else ""
    return f"there is no column {name!r} in {file.name}; it has {', '.join(columns.names)}{hint}"


def _check_taken(names: Mapping[str, str], media: Mapping[str, str]) -> None:
    """Refuse two columns with one name; DuckDB and many readers do not see case."""
    own = [f"{medium}{end}" for medium in media for end in ("", "_path", "_ref")]
    seen = dict.fromkeys(("uid", "key", "text", ERROR, *own), "Winnow's own")
    for old, new in names.items():
        if new.lower() in seen:
            msg = (
                f"file_table: the column {old!r} would be {new!r}, but {seen[new.lower()]} column "
                f"has that name (case does not count); set rename: {{{old}: original_{old}}}"
            )
            raise RecipeError(msg)
        seen[new.lower()] = f"another ({old!r})"

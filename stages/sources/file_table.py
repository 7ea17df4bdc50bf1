"""Tables whose columns name local media files: pairs, triplets, any columns beside them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError
from winnow.contracts.identity import UID_TYPE, uid_array
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_source
from winnow.contracts.source import SourceFile
from winnow.stages.sources._media_refs import FoundFile, file_below, folder_of, ref_array
from winnow.stages.sources._readers import TableFormat
from winnow.stages.sources._table_columns import Layout
from winnow.stages.sources._table_source import TableSource

logger = logging.getLogger(__name__)

MEDIA = ("image", "audio", "video")
ERROR = "file_error"
READERS = 8
"""Files that are read at once: a store answers many requests as fast as one."""


@register_source("file_table", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class FileTable(TableSource):
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
    absolute, has ".." (in a store also "%2e%2e"), "::" or "://", or leads out of the root by a link
    is *_outside. A table is read again when the table changes; a file that changes under it gives
    null media.

    root: the folder that paths are relative to; null = the folder of each table.
    image_column, audio_column, video_column: the columns with the paths; null = no such medium.
    text_column: the column with the text; null = none.
    keep: "all", or the names of the other columns to keep.  rename: old name -> new name, of kept
        columns.  format, types, bad_rows, column_names, delimiter, quoted, encoding: as in
        ``url_table``.
    """

    formats = ("parquet", "csv", "tsv", "jsonl")

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
        if not self._media():
            msg = "file_table: no medium; set image_column, audio_column or video_column"
            raise RecipeError(msg)
        names = [name for _, name in self._main().values() if name is not None]
        for name in names:
            if not name or names.count(name) > 1:
                msg = f"file_table: the column {name!r} is named twice; name each column once"
                raise RecipeError(msg)
        if self.format == "txt":
            msg = "file_table: format='txt'; use parquet, csv, tsv or jsonl"
            raise RecipeError(msg)
        self._check_reading()

    def schema(self) -> pa.Schema:
        """Return the columns, from the first file that has any."""
        media = self._media()
        fields = [("text", pa.string())]
        fields += [(f"{medium}_path", pa.string()) for medium in media]
        fields += [(f"{medium}_ref", MEDIA_REF) for medium in media]
        return pa.schema([*fields, *self._columns().kept(), (ERROR, pa.string())])

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield the rows of one table."""
        schema = pa.schema([("uid", UID_TYPE), *self.schema()])
        root = folder_of(file.path) if self.root is None else self.root
        lost = 0
        with ThreadPoolExecutor(READERS) as pool:
            for columns in self._batches(file):
                found = {
                    medium: _find(pool, root, columns[f"{medium}_path"].to_pylist())
                    for medium in self._media()
                }
                columns |= _found_columns(columns["text"], found)
                arrays = [columns[name] for name in schema.names]
                rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
                lost += rows.num_rows - rows.column(ERROR).null_count
                yield rows
        if lost:
            logger.warning("%s: %d rows name a file that cannot be read", file.name, lost)

    def _media(self) -> dict[str, str]:
        columns = (self.image_column, self.audio_column, self.video_column)
        return {m: c for m, c in zip(MEDIA, columns, strict=True) if c is not None}

    def _main(self) -> dict[str, tuple[str, str | None]]:
        main: dict[str, tuple[str, str | None]] = {
            f"{medium}_path": (f"{medium}_column", name) for medium, name in self._media().items()
        }
        return main | {"text": ("text_column", self.text_column)}

    def _reserved(self) -> list[str]:
        return [ERROR, *(name for medium in self._media() for name in (medium, f"{medium}_ref"))]


def _find(pool: ThreadPoolExecutor, root: str, paths: Sequence[str | None]) -> list[FoundFile]:
    """Look at every file once, however many rows name it."""
    distinct = list(dict.fromkeys(paths))
    found = dict(zip(distinct, pool.map(lambda p: file_below(root, p), distinct), strict=True))
    return [found[path] for path in paths]


def _found_columns(
    text: pa.StringArray, found: Mapping[str, Sequence[FoundFile]]
) -> dict[str, pa.Array]:
    """Return the references, the uid and the code of each row."""
    identity: list[Sequence[str | bytes | None]] = [text.to_pylist()]
    codes = pa.nulls(len(text), pa.string())
    columns: dict[str, pa.Array] = {}
    for medium, files in found.items():
        identity.append([file.relative for file in files])
        identity.append([file.ref and file.ref.digest for file in files])
        columns[f"{medium}_ref"] = ref_array([file.ref for file in files])
        problems = [file.problem and f"{medium}_{file.problem}" for file in files]
        codes = pc.coalesce(codes, pa.array(problems, pa.string()))
    return columns | {"uid": uid_array(identity), ERROR: codes}

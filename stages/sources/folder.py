"""Media files in folders, with captions beside them or in a table."""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.identity import UID_TYPE, row_uid
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import later, result
from winnow.contracts.registry import register_source
from winnow.contracts.source import Source, SourceFile
from winnow.stages.sources import _readers
from winnow.stages.sources._files import find_files, is_local, open_file, printable
from winnow.stages.sources._folders import (
    Entry,
    find_folders,
    read_folder,
    root_of,
    whole_file,
    with_extension,
)
from winnow.stages.sources._media_refs import MediaKind, Ref, media_extensions, ref_array

logger = logging.getLogger(__name__)

BATCH_ROWS = 1024
MAX_CAPTION_BYTES = 16 << 20
_SIDECARS = (".txt", ".json")
_FILE_COLUMNS = ("file", "file_name")
_Row = tuple[Entry | None, ...]


@register_source("folder", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFolder(Source):
    """One row per media file below a folder; what is read as a unit is one folder at a time.

    Reads:  path: a folder, local or any fsspec URL, with all folders below it; links are followed
            unless they lead upwards; names that start with "." are left out. Files are media by
            their extension, in any case.
    Writes: path: string, relative to the folder, with "/"; bytes that are not UTF-8 as ``\\xff``.
            text: string, from ``captions``; else the file of the same stem with .txt (white space
            at both ends taken off), else with .json (key caption, else text). null where there is
            none, or it is not UTF-8, not JSON, or over 16 MiB.
            <media>_ref: MEDIA_REF of the whole file; null where it cannot be read (a dead link, no
            permission, a pipe) or its path is not UTF-8. A file of no bytes has length 0.
            <also>_ref: if ``also`` is set, the same of the first file, by name, of the same folder
            and stem (up to the last dot) with an extension of the other medium. A file of that
            medium without a partner is a row too, its <media>_ref null.
    Identity: relative path as stored, digest of the bytes (null where there is no reference); with
            ``also``, the digest of the other file too.
    Cost:   one read of every file, for the digest. Memory: a folder's names, one batch of rows,
            and the captions table, once per worker.
    Fails:  SetupError: no folder, no media, a folder that cannot be listed, a captions table
            without the columns or of which nothing fits. ShardError: a folder that went away, a
            captions table that cannot be read or has two texts for one file.

    media: "image" or "audio".  media_extensions: lower case, instead of the usual ones.
    also: the other medium, where files of one stem belong together: a.jpg, a.flac, a.txt.
    captions: a table (csv, tsv, jsonl, parquet) with the columns ``file`` or ``file_name``, a path
        relative to ``path``, and ``text``.
    """

    path: str
    media: MediaKind = result("image")
    media_extensions: tuple[str, ...] | None = result(None)
    captions: str | None = result(None)
    also: MediaKind | None = later(None)

    def __post_init__(self) -> None:
        self._extensions()

    def files(self) -> list[SourceFile]:
        """Return the folders that hold media, sorted by name; the root's name is "."."""
        table = self._captions_file()
        if table is not None:
            self._check_captions(table)
        return find_folders(
            "folder",
            self.path,
            self.media,
            [extension for kinds in self._extensions().values() for extension in kinds],
            beside=lambda name: name.endswith(_SIDECARS),
            more=table.token if table else "",
        )

    def schema(self) -> pa.Schema:
        """Return the columns; they depend on ``media`` and ``also`` only."""
        refs = [(f"{medium}_ref", MEDIA_REF) for medium in self._extensions()]
        return pa.schema([("path", pa.string()), ("text", pa.string()), *refs])

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield the media of one folder, by name."""
        schema = pa.schema([("uid", UID_TYPE), *self.schema()])
        table = self._captions_file()
        captions = None if table is None else _captions(table.path, table.token)
        before, entries = read_folder(self.path, file.path)
        sidecars = {entry.name: entry for entry in entries}
        rows = self._rows(entries)
        for start in range(0, len(rows), BATCH_ROWS):
            part = rows[start : start + BATCH_ROWS]
            paths = [before + _name(row) for row in part]
            if captions is not None:
                texts = [captions.get(printable(path)) for path in paths]
            else:
                texts = [_sidecar_text(_name(row), sidecars) for row in part]
            refs = [[whole_file(entry) if entry else None for entry in row] for row in part]
            yield _batch(paths, texts, refs, schema)
            wanted = sum(entry is not None for row in part for entry in row)
            if missing := wanted - sum(ref is not None for found in refs for ref in found):
                logger.warning("%s: %d files cannot be read", file.name, missing)

    def _extensions(self) -> dict[MediaKind, tuple[str, ...]]:
        """Return the extensions of each medium of the rows."""
        return media_extensions("folder", self.media, self.media_extensions, self.also)

    def _rows(self, entries: Sequence[Entry]) -> list[_Row]:
        """Return the files of each row, one per medium, in order of name."""
        media, *others = (with_extension(entries, kinds) for kinds in self._extensions().values())
        if not others:
            return [(entry,) for entry in media]
        partners: dict[str, Entry] = {}
        for entry in others[0]:
            partners.setdefault(entry.stem, entry)
        stems = {entry.stem for entry in media}
        rows: list[_Row] = [(entry, partners.get(entry.stem)) for entry in media]
        rows += [(None, entry) for entry in others[0] if entry.stem not in stems]
        return sorted(rows, key=_name)

    def _captions_file(self) -> SourceFile | None:
        if self.captions is None:
            return None
        kinds = "/".join(_readers.EXTENSIONS)
        files = find_files("folder", self.captions, lambda _: False, f"{kinds} table")
        if len(files) != 1:
            msg = f"folder: captions={self.captions!r} is {len(files)} files; give one table"
            raise SetupError(msg)
        return files[0]

    def _check_captions(self, table: SourceFile) -> None:
        """Look whether any of the first rows names a file that is there."""
        try:
            batch = next(_caption_rows(table.path), None)
        except ShardError as error:
            msg = f"folder: captions: {error}"
            raise SetupError(msg) from error
        names = [] if batch is None else [name for name, _ in batch]
        root = root_of(self.path)
        if names and not any(_exists(root, name) for name in names[:100]):
            msg = (
                f"folder: captions={self.captions!r}: none of its first files is below "
                f"{self.path!r}: {', '.join(names[:3])}; write paths relative to the folder"
            )
            raise SetupError(msg)


def _name(row: _Row) -> str:
    """Return the name of the first file of a row."""
    return next(entry.name for entry in row if entry)


def _batch(
    paths: Sequence[str],
    texts: Sequence[str | None],
    refs: Sequence[Sequence[Ref | None]],
    schema: pa.Schema,
) -> pa.RecordBatch:
    uids = [
        row_uid(path, *(ref and ref.digest for ref in found))
        for path, found in zip(paths, refs, strict=True)
    ]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(uids, UID_TYPE),
            pa.array([printable(path) for path in paths], pa.string()),
            pa.array(texts, pa.string()),
            *(ref_array(column) for column in zip(*refs, strict=True)),
        ],
        schema=schema,
    )


def _sidecar_text(name: str, sidecars: Mapping[str, Entry]) -> str | None:
    for extension in _SIDECARS:
        entry = sidecars.get(name.rpartition(".")[0] + extension)
        if entry is not None and entry.token:
            text = _sidecar(entry.path)
            return text if extension == ".txt" else _json_caption(text)
    return None


def _sidecar(path: str) -> str | None:
    try:
        with open_file(path) as stream:
            data = stream.read(MAX_CAPTION_BYTES + 1)
        return data.decode("utf-8-sig").strip() if len(data) <= MAX_CAPTION_BYTES else None
    except (OSError, UnicodeDecodeError):
        return None


def _json_caption(text: str | None) -> str | None:
    try:
        record: Any = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    found = (record.get(key) for key in ("caption", "text"))
    caption = next((value for value in found if isinstance(value, str)), None)
    return caption and caption.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _exists(root: str, name: str) -> bool:
    if "::" in name or "://" in name:  # another store, to fsspec
        return False
    path = f"{root}/{name}"
    try:
        if is_local(path):
            return os.path.isfile(path)  # noqa: PTH113 - a Path cannot be made of every name
        open_file(path).close()
    except (OSError, ValueError):
        return False
    return True


def _caption_rows(path: str) -> Iterator[list[tuple[str, str | None]]]:
    """Yield the rows of a captions table in batches: relative path, text."""
    options = _readers.TableOptions()
    columns = _readers.header(path, options)
    if columns is None:
        return
    file = next((name for name in _FILE_COLUMNS if name in columns.names), None)
    if file is None or "text" not in columns.names:
        msg = (
            f"{printable(path)}: a captions table needs the columns file (or file_name) and text; "
            f"it has {', '.join(columns.names)}"
        )
        raise ShardError(msg, retryable=False)
    wanted = pa.schema([(file, pa.string()), ("text", pa.string())])
    for batch in _readers.batches(path, options, wanted, None):
        paths = ((name or "").removeprefix("./") for name in batch.column(file).to_pylist())
        yield list(zip(paths, batch.column("text").to_pylist(), strict=True))


@functools.lru_cache(maxsize=1)
def _captions(path: str, token: str) -> Mapping[str, str | None]:
    """Return relative path -> text of a whole table, kept for the next folder of this worker."""
    captions: dict[str, str | None] = {}
    for rows in _caption_rows(path):
        for name, text in rows:
            if name and captions.setdefault(name, text) != text:
                msg = f"{printable(path)}: two texts for {name!r}"
                raise ShardError(msg, retryable=False)
    return captions

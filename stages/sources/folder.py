"""Media files in folders, with captions beside them or in a table."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.identity import UID_BYTES, UID_TYPE, row_uid
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import later, result
from winnow.contracts.registry import register_source
from winnow.contracts.source import Source, SourceFile
from winnow.stages.sources import _readers
from winnow.stages.sources._files import (
    find_files,
    is_local,
    local_path,
    near,
    open_file,
    printable,
)
from winnow.stages.sources._folders import Entry, list_folder, walk_folders
from winnow.stages.sources._media_refs import (
    MediaKind,
    Ref,
    digest_of,
    media_extensions,
    other_extensions,
    ref_array,
)

logger = logging.getLogger(__name__)

BATCH_ROWS = 1024
MAX_CAPTION_BYTES = 16 << 20
_CHUNK = 1 << 20
_SIDECARS = (".txt", ".json")
_FILE_COLUMNS = ("file", "file_name")


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
        media_extensions("folder", self.media, self.media_extensions)
        other_extensions("folder", self.media, self.media_extensions, self.also)

    def files(self) -> list[SourceFile]:
        """Return the folders that hold media, sorted by name; the root's name is "."."""
        table = self._captions_file()
        if table is not None:
            self._check_captions(table)
        found = []
        try:
            for folder, entries in walk_folders(self._root()):
                if self._rows(entries):
                    found.append(
                        SourceFile(
                            path=folder.path,
                            name=printable(folder.relative) or ".",
                            token=self._token(entries, table),
                        )
                    )
        except (FileNotFoundError, NotADirectoryError):
            msg = f"folder: there is no folder {self.path!r}; {near(self._root())}"
            raise SetupError(msg) from None
        except OSError as error:
            msg = f"folder: a folder below {self.path!r} cannot be listed: {error}"
            raise SetupError(msg) from error
        if not found:
            msg = f"folder: no {self.media} file below {self.path!r}; {near(self._root())}"
            raise SetupError(msg)
        return sorted(found, key=lambda file: file.name)

    def schema(self) -> pa.Schema:
        """Return the columns; they depend on ``media`` and ``also`` only."""
        media = [self.media, *([self.also] if self.also else [])]
        refs = [(f"{medium}_ref", MEDIA_REF) for medium in media]
        return pa.schema([("path", pa.string()), ("text", pa.string()), *refs])

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield the media of one folder, by name."""
        schema = pa.schema([("uid", UID_TYPE), *self.schema()])
        table = self._captions_file()
        captions = None if table is None else _captions(table.path, table.token)
        try:
            entries, _ = list_folder(file.path)
        except OSError as error:
            msg = f"{printable(file.path)}: the folder cannot be listed: {error}"
            raise ShardError(msg, retryable=not isinstance(error, FileNotFoundError)) from error
        sidecars = {entry.name: entry for entry in entries}
        inner = file.path[len(self._root().rstrip("/")) :].strip("/")
        rows = self._rows(entries)
        for start in range(0, len(rows), BATCH_ROWS):
            part = rows[start : start + BATCH_ROWS]
            names = [next(entry.name for entry in row if entry) for row in part]
            paths = [f"{inner}/{name}" if inner else name for name in names]
            if captions is not None:
                texts = [captions.get(printable(path)) for path in paths]
            else:
                texts = [_sidecar_text(name, sidecars) for name in names]
            refs = [[_ref(entry) if entry else None for entry in row] for row in part]
            uids = [
                row_uid(path, *(ref[3] if ref else None for ref in found))
                for path, found in zip(paths, refs, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(uids, UID_TYPE),
                    pa.array([printable(path) for path in paths], pa.string()),
                    pa.array(texts, pa.string()),
                    *(ref_array(column) for column in zip(*refs, strict=True)),
                ],
                schema=schema,
            )
            wanted = [(e, r) for row, f in zip(part, refs, strict=True)
                      for e, r in zip(row, f, strict=True)]  # fmt: skip
            if missing := sum(ref is None for entry, ref in wanted if entry):
                logger.warning("%s: %d files cannot be read", file.name, missing)

    def _root(self) -> str:
        return local_path(self.path) if is_local(self.path) else self.path.rstrip("/")

    def _rows(self, entries: Sequence[Entry]) -> list[tuple[Entry | None, ...]]:
        """Return the files of each row, one per medium, in order of name."""
        media = self._media_entries(entries)
        if self.also is None:
            return [(entry,) for entry in media]
        others: dict[str, Entry] = {}
        lonely: dict[str, Entry] = {}
        stems = {_stem(entry.name) for entry in media}
        for entry in self._other_entries(entries):
            if _stem(entry.name) in stems:
                others.setdefault(_stem(entry.name), entry)
            else:
                lonely[entry.name] = entry
        rows: list[tuple[Entry | None, ...]] = [(e, others.get(_stem(e.name))) for e in media]
        rows += [(None, entry) for entry in lonely.values()]
        return sorted(rows, key=lambda row: next(entry.name for entry in row if entry))

    def _other_entries(self, entries: Sequence[Entry]) -> list[Entry]:
        given = self.media_extensions
        extensions = other_extensions("folder", self.media, given, self.also)
        suffixes = tuple(f".{extension}" for extension in extensions)
        return [entry for entry in entries if suffixes and entry.name.lower().endswith(suffixes)]

    def _media_entries(self, entries: Sequence[Entry]) -> list[Entry]:
        extensions = media_extensions("folder", self.media, self.media_extensions)
        suffixes = tuple(f".{extension}" for extension in extensions)
        return [entry for entry in entries if entry.name.lower().endswith(suffixes)]

    def _token(self, entries: Sequence[Entry], table: SourceFile | None) -> str:
        """Digest names, sizes and times of all that the rows of a folder depend on."""
        digest = hashlib.blake2b(digest_size=UID_BYTES)
        used = {*self._media_entries(entries), *self._other_entries(entries)}
        used |= {entry for entry in entries if entry.name.endswith(_SIDECARS)}
        for entry in sorted(used, key=lambda entry: entry.name):
            digest.update(f"{entry.name}\0{entry.token}\0".encode("utf-8", "surrogatepass"))
        digest.update((table.token if table else "").encode())
        return digest.hexdigest()

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
        root = self._root()
        if names and not any(_exists(f"{root}/{name}") for name in names[:100]):
            msg = (
                f"folder: captions={self.captions!r}: none of its first files is below "
                f"{self.path!r}: {', '.join(names[:3])}; write paths relative to the folder"
            )
            raise SetupError(msg)


def _ref(entry: Entry) -> Ref | None:
    """Return the reference to a whole file; None where it cannot be read or named."""
    if not entry.token or printable(entry.path) != entry.path:
        return None
    try:
        with open_file(entry.path) as stream:
            length, digest = digest_of(iter(functools.partial(stream.read, _CHUNK), b""))
    except OSError:
        return None
    return entry.path, 0, length, digest


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _sidecar_text(name: str, sidecars: Mapping[str, Entry]) -> str | None:
    stem = _stem(name)
    for extension in _SIDECARS:
        entry = sidecars.get(stem + extension)
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


def _exists(path: str) -> bool:
    try:
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
            if captions.setdefault(name, text) != text:
                msg = f"{printable(path)}: two texts for {name!r}"
                raise ShardError(msg, retryable=False)
    return captions

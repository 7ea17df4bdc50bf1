"""WebDataset tar shards, read without loss: original keys, bytes where they lie, all sidecars."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from winnow.contracts.errors import SetupError, ShardError
from winnow.contracts.identity import UID_TYPE, row_uid
from winnow.contracts.media import MEDIA_REF
from winnow.contracts.parameters import later, result
from winnow.contracts.registry import register_source
from winnow.contracts.source import Source, SourceFile
from winnow.stages.sources._files import find_files, open_file, printable
from winnow.stages.sources._json_columns import JsonColumns, JsonReader
from winnow.stages.sources._media_refs import (
    MediaKind,
    Ref,
    check_extension,
    digest_of,
    media_extensions,
    ref_array,
)
from winnow.stages.sources._table_columns import RESERVED
from winnow.stages.sources._tar import Member, TarWalk

logger = logging.getLogger(__name__)

BATCH_ROWS = 1024
MAX_TEXT_BYTES = 16 << 20
"""A longer text or metadata member is kept as one of ``members``."""
PICKLES = frozenset(
    {"pkl", "pickle", "pyd", "pth", "pt", "joblib", "dill", "cloudpickle", "jpgs", "ckpt"}
)
"""Parts of an extension whose readers unpickle: loading them runs what their author wrote."""
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")

MEMBER = pa.struct([pa.field("extension", pa.string()), *MEDIA_REF])
"""One further member of a sample: its extension as stored, and where its bytes are."""

_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")
_META = re.compile(r"__[^/]*__(?:$|/)")


def split_name(name: str) -> tuple[str, str] | None:
    """Return key and extension of a member as webdataset's ``base_plus_ext`` does.

    The key ends at the first dot of the last path component; None where there is no dot, or where
    webdataset takes the member for metadata of the archive (``__name__``, ``__name__/...``).

    >>> split_name("a.b/c.seg.png")
    ('a.b/c', 'seg.png')
    """
    match = _NAME.fullmatch(name)
    if match is None or _META.match(name):
        return None
    return match[1], match[2]


def is_pickle(extension: str) -> bool:
    """Return whether a lower-case extension says that its readers unpickle (also ``pkl.gz``, and
    ``pkl`` before a NUL, which ends a name elsewhere)."""
    return not PICKLES.isdisjoint(re.split(r"[.\0]", extension))


@dataclass(kw_only=True, slots=True)
class Slot:
    """The preferred member of one medium, as far as a sample was read."""

    ref: Ref | None = None
    rank: int = 0
    extension: str = ""


@dataclass(kw_only=True, slots=True)
class Sample:
    """One sample being read: consecutive members with one key. media: one slot per medium."""

    key: str
    media: tuple[Slot, ...]
    text: str | None = None
    metadata: str | None = None
    members: list[tuple[str, Ref]] = field(default_factory=list)
    omitted: int = 0

    def offer_media(self, slot: Slot, rank: int, extension: str, ref: Ref) -> None:
        """Take the media if its extension is preferred to what is there; the other is a member."""
        if slot.ref is not None and slot.rank <= rank:
            self.members.append((extension, ref))
            return
        if slot.ref is not None:
            self.members.append((slot.extension, slot.ref))
        slot.ref, slot.rank, slot.extension = ref, rank, extension


@register_source("webdataset", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class WebDataset(Source):
    """Rows of tar shards: consecutive members with one key are one row, as webdataset groups them.

    Reads:  path: a tar, a folder (its ``*.tar``), a glob, a brace range ``{00000..00099}`` or a
            list of these, local or any fsspec URL. What img2dataset writes is read as it is.
            Compressed tars are refused: media are read by offset.
    Writes: source_key: string, the key as stored; bytes that are not UTF-8 as ``\\xff``.
            text: string, the first member with one of ``text_extensions``, verbatim; else null.
            metadata: string, the first ``metadata_extension`` member, verbatim; else null.
            <media>_ref: MEDIA_REF of the member whose extension comes first in
            ``media_extensions`` (of equal ones the first); null where there is none.
            <also>_ref: the same of the other medium, by its usual extensions, if ``also`` is set.
            members: list<struct<extension, path, offset, length, digest>>, every other member in
            archive order, extensions as stored: with text and metadata nothing is lost. A text or
            metadata that is not UTF-8, or is over 16 MiB, is here instead.
            num_omitted_members: int32, members that no column carries: pickles (by extension, or
            by content: protocol 2 to 5), links, devices, sparse files and names without an
            extension, counted in the sample they stand in.
            each of ``json_columns``: its type; the value of that key in ``metadata``, which stays
            as it is. Null where metadata is null, is no JSON object, has no such key or null.
            Where a value is not of its type, that value is null and what stands about it stays: an
            element of a list, a field of a struct; counted in the log. Nothing is converted: "3" is
            no number, 3 no string, true no integer; 3.0 is an integer, dates and timestamps are
            ISO 8601 strings, and what the type cannot hold is not of it. Keys that a struct does
            not name are left out.
    Identity: key as stored, digest of the media (null where there is none); with ``also``, of the
            other medium too.
    Cost:   one forward read of every byte, for the digests; memory is one batch of rows.
    Fails:  RecipeError: a name of ``json_columns`` is taken (case does not count), or a type is
            none. SetupError: no file, or a compressed tar. ShardError with the byte offset: a
            truncated tar, one without its end-of-archive marker, data after the marker, not a tar.

    media: "image" or "audio".  media_extensions: lower case, in order of preference.
    also: the other medium, where a sample may hold both; without it that is one of ``members``.
    json_columns: key of the .json -> its type: "string" | "bool" | "int8" | "int16" | "int32" |
        "int64" | "float32" | "float64" | "date" | "timestamp" | "timestamp_utc", "list<TYPE>" or
        "struct<NAME: TYPE, ...>"; the key is the column's name.
    rename: old name -> new name, of json_columns.
    """

    path: str | tuple[str, ...]
    media: MediaKind = result("image")
    media_extensions: tuple[str, ...] | None = result(None)
    text_extensions: tuple[str, ...] = result(("txt", "caption"))
    metadata_extension: str = result("json")
    also: MediaKind | None = later(None)
    json_columns: Mapping[str, str] | None = later(None)
    rename: Mapping[str, str] | None = later(None)

    def __post_init__(self) -> None:
        self._json_columns()
        for extension in self.text_extensions:
            check_extension("webdataset", "text_extensions", extension)
        check_extension("webdataset", "metadata_extension", self.metadata_extension)

    def files(self) -> list[SourceFile]:
        """Return the tars, sorted by name."""
        suffixes = (".tar", *COMPRESSED)
        files = find_files(
            "webdataset", self.path, lambda name: name.lower().endswith(suffixes), ".tar file"
        )
        for file in files:
            if file.path.lower().endswith(COMPRESSED):
                msg = f"webdataset: {file.path} is compressed; unpack it, media are read by offset"
                raise SetupError(msg)
        return files

    def schema(self) -> pa.Schema:
        """Return the columns; they depend on the parameters only."""
        return pa.schema([*self._own_schema(), *self._json_columns().fields])

    def _own_schema(self) -> pa.Schema:
        return pa.schema(
            [
                ("source_key", pa.string()),
                ("text", pa.string()),
                ("metadata", pa.string()),
                *((f"{medium}_ref", MEDIA_REF) for medium in self._extensions()),
                ("members", pa.list_(MEMBER)),
                ("num_omitted_members", pa.int32()),
            ]
        )

    def _json_columns(self) -> JsonColumns:
        taken = (*RESERVED, *self._extensions(), *self._own_schema().names)
        return JsonColumns.of("webdataset", self.json_columns or {}, self.rename or {}, taken)

    def read(self, file: SourceFile) -> Iterator[pa.RecordBatch]:
        """Yield the samples of one tar."""
        schema = pa.schema([("uid", UID_TYPE), *self.schema()])
        reader = JsonReader(self._json_columns())
        samples: list[Sample] = []
        try:
            with open_file(file.path) as stream:
                walk = TarWalk(stream, file.path, lambda: open_file(file.path))
                for sample in self._samples(walk, file):
                    samples.append(sample)
                    if len(samples) == BATCH_ROWS:
                        yield _batch(samples, schema, reader)
                        samples = []
        except OSError as error:
            msg = f"{file.path}: cannot be read: {error}"
            raise ShardError(msg, retryable=not isinstance(error, FileNotFoundError)) from error
        if samples:
            yield _batch(samples, schema, reader)
        reader.warn(file.name)

    def _extensions(self) -> dict[MediaKind, tuple[str, ...]]:
        """Return the extensions of each medium of the rows."""
        return media_extensions("webdataset", self.media, self.media_extensions, self.also)

    def _samples(self, walk: TarWalk, file: SourceFile) -> Iterator[Sample]:
        extensions = self._extensions()
        ranks = {
            extension: (place, rank)
            for place, names in enumerate(extensions.values())
            for rank, extension in enumerate(names)
        }
        sample: Sample | None = None
        early = 0
        for member in walk:
            if member.folder:
                continue
            name = split_name(member.name) if member.regular else None
            if name is None:
                # Groups are made of the other members only; count it where it stands.
                if sample is None:
                    early += 1
                else:
                    sample.omitted += 1
                continue
            key, extension = name
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                slots = tuple(Slot() for _ in extensions)
                sample, early = Sample(key=key, media=slots, omitted=early), 0
            self._add(sample, extension, member, walk, file, ranks)
        if sample is not None:
            yield sample
        elif early:
            logger.warning("%s: %d members, none with a key and an extension", file.name, early)

    def _add(
        self,
        sample: Sample,
        extension: str,
        member: Member,
        walk: TarWalk,
        file: SourceFile,
        ranks: dict[str, tuple[int, int]],
    ) -> None:
        lower = extension.lower()
        if not member.plain or is_pickle(lower):
            sample.omitted += 1
            return
        is_text = lower in self.text_extensions and sample.text is None
        is_metadata = lower == self.metadata_extension and sample.metadata is None
        pieces: Iterator[bytes] | Sequence[bytes] = walk.content(member)
        if (is_text or is_metadata) and member.size <= MAX_TEXT_BYTES:
            pieces = [b"".join(pieces)]
            decoded = _decode(pieces[0])
            if decoded is not None:
                if is_text:
                    sample.text = decoded
                else:
                    sample.metadata = decoded
                return
        sniff = _Sniff(pieces)
        length, digest = digest_of(sniff)
        ref = Ref(file.path, member.offset, length, digest)
        if lower in ranks:
            place, rank = ranks[lower]
            sample.offer_media(sample.media[place], rank, printable(extension), ref)
        elif sniff.is_pickle():
            sample.omitted += 1
        else:
            sample.members.append((printable(extension), ref))


class _Sniff(Iterator[bytes]):
    """Pieces that pass through, and whether they are a pickle: 0x80, protocol, ..., a full stop."""

    def __init__(self, pieces: Iterator[bytes] | Sequence[bytes]) -> None:
        self._pieces = iter(pieces)
        self._head, self._last = b"", b""

    def __next__(self) -> bytes:
        piece = next(self._pieces)
        self._head = self._head or piece[:2]
        self._last = piece[-1:]
        return piece

    def is_pickle(self) -> bool:
        """Return the verdict, after the last piece; protocols 2 to 5 begin like this."""
        protocol = self._head[1:]
        return self._head[:1] == b"\x80" and b"\x02" <= protocol <= b"\x05" and self._last == b"."


def _decode(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _batch(samples: Sequence[Sample], schema: pa.Schema, reader: JsonReader) -> pa.RecordBatch:
    refs = list(zip(*([slot.ref for slot in s.media] for s in samples), strict=True))
    uids = [row_uid(s.key, *(m.ref and m.ref.digest for m in s.media)) for s in samples]
    offsets = [0]
    for sample in samples:
        offsets.append(offsets[-1] + len(sample.members))
    members = [
        (extension, *ref)
        for sample in samples
        for extension, ref in sorted(sample.members, key=lambda member: member[1].offset)
    ]
    fields = list(zip(*members, strict=True)) or [()] * len(MEMBER)
    values = pa.StructArray.from_arrays(
        [pa.array(v, f.type) for v, f in zip(fields, MEMBER, strict=True)], fields=list(MEMBER)
    )
    return pa.RecordBatch.from_arrays(
        [
            pa.array(uids, UID_TYPE),
            pa.array([printable(s.key) for s in samples], pa.string()),
            pa.array([s.text for s in samples], pa.string()),
            pa.array([s.metadata for s in samples], pa.string()),
            *(ref_array(column) for column in refs),
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values),
            pa.array([s.omitted for s in samples], pa.int32()),
            *reader.arrays([s.metadata for s in samples]),
        ],
        schema=schema,
    )

"""LLaVA's data set: one JSON of conversations, and the pictures in folders beside it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.types as pt

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.exporter import ExportContext, Exporter, FileSummary, Sink
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_exporter
from winnow.models.conversation import IMAGE_TOKEN
from winnow.stages.export import _columns, _finish
from winnow.stages.export._columns import KEY, UID
from winnow.stages.export._layout import Layout
from winnow.stages.export._sniff import payload_extension

WHOLE_NAME = "llava.json"
ROLES = ("human", "gpt")
Put = Callable[[str, memoryview], None]
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def image_path(key: str, extension: str) -> str:
    """Return where a picture lies in the export: at most 256 folders."""
    return f"images/{key[:2]}/{key}.{extension}"


def problem_of(turns: Sequence[Mapping[str, str | None] | None] | None) -> str | None:
    """Return why LLaVA's trainer could not use a conversation; None where it can."""
    if not turns:
        return "no conversation"
    if len(turns) % 2 or [turn and turn["from"] for turn in turns] != [
        ROLES[place % 2] for place in range(len(turns))
    ]:
        return "turns that are not human and gpt by turns"
    values = [(turn or {}).get("value") or "" for turn in turns]
    if not all(value.strip() for value in values):
        return "an empty turn"
    if sum(value.count(IMAGE_TOKEN) for value in values) != 1 or IMAGE_TOKEN not in values[0]:
        return f"not exactly one {IMAGE_TOKEN}, in its first turn"
    return None


@register_exporter("llava", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Llava(Exporter):
    """Write LLaVA's JSON and the pictures it names.

    Reads:   uid: fixed_size_binary(16); key: string; the payload: large_binary, not null;
             <conversations>: list<struct<from: string, value: string>>, see ``instructions``.
    Writes:  llava.json: [{"id", "image", "conversations"}, ...], an entry per line, UTF-8; ``id``
             is the key, ``image`` the picture's path in the export. 00000.json ... : the same in
             parts of ``rows_per_file`` entries. images/<two digits>/<key>.<extension>: the
             pictures. files.json (sha256 of the parts), croissant.json, README.md; every annotation
             is in manifest.parquet.
    Cost:    CPU; holds one row batch; one file per row, so that a file system is wanted where
             millions of small files are no trouble.
    Fails:   ShardError, not retryable, where a row has no payload, or a conversation that LLaVA's
             trainer cannot use: human and gpt by turns, "<image>" once, in the first.

    payload: the column with the picture; null = image, else the first there is.
    conversations: the column with the turns.
    extension: "auto" names each picture by its first bytes.
    seed, shuffle: the order of the rows, which the pipeline makes before they come here.
    """

    payload: str | None = result(None)
    conversations: str = result("conversations")
    extension: str = result("auto")
    rows_per_file: int = result(10_000)
    seed: int = result(0)
    shuffle: Literal["bucket", "global"] = result("bucket")

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            msg = f"llava: rows_per_file={self.rows_per_file}; use 1 or more"
            raise RecipeError(msg)
        if not re.fullmatch(r"[a-z0-9]{1,16}", self.extension):
            msg = f"llava: extension={self.extension!r}; use auto, or letters such as jpg"
            raise RecipeError(msg)

    def payloads(self, columns: pa.Schema) -> list[str]:
        if self.conversations not in columns.names:
            msg = (
                f"llava: conversations={self.conversations!r} is not a column; add the stage "
                "`instructions`, or name the column that holds them"
            )
            raise RecipeError(msg)
        kind = columns.field(self.conversations).type
        if not _is_conversations(kind):
            msg = (
                f"llava: conversations={self.conversations!r} is {kind}, not "
                "list<struct<from: string, value: string>>"
            )
            raise RecipeError(msg)
        return [_columns.choose_payload(self.name, self.payload, columns)]

    def file_name(self, index: int) -> str:
        return f"{index:05d}.json"

    def write_file(self, rows: Iterator[pa.RecordBatch], out: BinaryIO) -> Mapping[str, Any]:
        return self._write(rows, out, lambda name, data: None)

    def write_part(
        self, rows: Iterator[pa.RecordBatch], out: BinaryIO, sink: Sink
    ) -> Mapping[str, Any]:
        def put(name: str, data: memoryview) -> None:
            with sink.create(name) as file:
                file.write(data)

        return self._write(rows, out, put)

    def finish(self, files: Sequence[FileSummary], context: ExportContext, sink: Sink) -> None:
        layout = Layout.of(files, context, exporter=self.name, text=None)
        with sink.create(WHOLE_NAME) as out:
            entries = _EntryWriter(out)
            for file in layout.data_files:
                with sink.open(file.name) as part:
                    for line in part:
                        if line.startswith(b"{"):
                            entries.add(line.rstrip(b",\n"))
            entries.close()
        _finish.write_description(layout, context, sink)

    def _write(self, rows: Iterator[pa.RecordBatch], out: BinaryIO, put: Put) -> Mapping[str, Any]:
        entries, extensions = _EntryWriter(out), Counter[str]()
        names: list[str] = []
        for batch in rows:
            names = sorted({UID, KEY, *_columns.annotation_names(batch.schema)})
            uids = batch.column(UID).to_pylist()
            payload = _columns.choose_payload(self.name, self.payload, batch.schema)
            views = _columns.payload_views(batch, payload, uids)
            turns = batch.column(self.conversations).to_pylist()
            keys = batch.column(KEY).to_pylist()
            for uid, key, data, said in zip(uids, keys, views, turns, strict=True):
                _check(said, uid, self.conversations)
                extension = payload_extension(self.extension, data)
                extensions[extension] += 1
                path = image_path(key, extension)
                put(path, data)
                entry = {"id": key, "image": path, "conversations": said}
                entries.add(_ENCODER.encode(entry).encode())
        entries.close()
        return {"columns": names, "extensions": dict(sorted(extensions.items()))}


class _EntryWriter:
    """Writes a JSON array with an entry per line."""

    def __init__(self, out: BinaryIO) -> None:
        self._out, self._before = out, b"[\n"

    def add(self, entry: bytes) -> None:
        self._out.write(self._before + entry)
        self._before = b",\n"

    def close(self) -> None:
        self._out.write(b"[]\n" if self._before == b"[\n" else b"\n]\n")


def _check(turns: Any, uid: bytes, column: str) -> None:
    problem = problem_of(turns)
    if problem is not None:
        msg = (
            f"the row was selected for export but its {column} has {problem}; add a filter that "
            f'drops such rows, for example `where: "{column}_error is None"`'
        )
        raise ShardError(msg, stage="export", uid=uid.hex(), retryable=False)


def _is_conversations(kind: pa.DataType) -> bool:
    if not (pt.is_list(kind) or pt.is_large_list(kind)) or not pt.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return set(fields) == {"from", "value"} and all(map(pt.is_string, fields.values()))

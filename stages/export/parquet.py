"""Parquet files with the media inside, as Hugging Face datasets reads and shows them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError
from winnow.contracts.exporter import ExportContext, Exporter, FileSummary, Sink
from winnow.contracts.parameters import result
from winnow.contracts.registry import register_exporter
from winnow.stages.export import _columns, _finish, _manifest
from winnow.stages.export._columns import KEY, UID
from winnow.stages.export._layout import Layout
from winnow.stages.export._sniff import HEAD_BYTES, media_extension

GROUP_ROWS = 1000
GROUP_BYTES = 64 << 20
MEDIA_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""What ``datasets`` stores for an Image() or Audio() feature."""


def media_column(payload: str) -> str:
    """Return the column that the payload goes to: "audio" or "image", as consumers expect."""
    return "audio" if "audio" in payload else "image"


def features_metadata(column: str) -> dict[str, str]:
    """Return the schema metadata that makes ``datasets`` decode the column."""
    feature = {"_type": "Audio" if column == "audio" else "Image"}
    return {"huggingface": json.dumps({"info": {"features": {column: feature}}})}


@register_exporter("parquet", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Parquet(Exporter):
    """Write Parquet files with the media and every annotation of a row side by side.

    Reads:   uid: fixed_size_binary(16); key: string; the payload: large_binary, not null; every
             annotation column.
    Writes:  00000.parquet ... with ``rows_per_file`` rows each: uid, key, then ``image`` (or
             ``audio``): struct<bytes: binary, path: string> with the feature of that name in the
             schema's metadata, then the annotations as they are (lists of fixed_size_binary as
             lists of binary, which pandas can read). Row groups of at most 1,000 rows and 64 MB
             of media. files.json, croissant.json, README.md.
             Sidecars of the source and references into local files are left out.
    Cost:    CPU; holds one row group.
    Fails:   ShardError, not retryable, where a row has no payload.

    payload: the column with the bytes; null = image, else audio, else the first there is.
    columns: annotations to write; null = all.
    extension: in ``path``; "auto" = by the first bytes of the payload.
    seed, shuffle: the order of the rows, which the pipeline makes before they come here.
    """

    payload: str | None = result(None)
    columns: tuple[str, ...] | None = result(None)
    extension: str = result("auto")
    rows_per_file: int = result(10_000)
    seed: int = result(0)
    shuffle: Literal["bucket", "global"] = result("bucket")

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            msg = f"parquet: rows_per_file={self.rows_per_file}; use 1 or more"
            raise RecipeError(msg)

    def payloads(self, columns: pa.Schema) -> list[str]:
        payload = _columns.choose_payload(self.name, self.payload, columns)
        _columns.check_annotations(self.name, self.columns or (), columns)
        if media_column(payload) in self._annotations(columns):
            msg = f"parquet: the column {media_column(payload)!r} is there already; leave it out"
            raise RecipeError(msg)
        return [payload]

    def file_name(self, index: int) -> str:
        return f"{index:05d}.parquet"

    def write_file(self, rows: Iterator[pa.RecordBatch], out: BinaryIO) -> Mapping[str, Any]:
        extensions: Counter[str] = Counter()
        first = next(rows, None)
        if first is None:
            return {}
        schema = self._file_schema(first.schema)
        column = media_column(self._payload(first.schema))
        batches = (self._convert(b, schema, column, extensions) for b in chain((first,), rows))
        groups = _manifest.row_groups(batches, schema, GROUP_ROWS, GROUP_BYTES, _sizes(column))
        with _manifest.open_parquet(out, schema, payload=column) as writer:
            for table in groups:
                writer.write_table(table, row_group_size=table.num_rows)
        return {
            "columns": [name for name in schema.names if name != column],
            "payload": column,
            "extensions": dict(sorted(extensions.items())),
        }

    def finish(self, files: Sequence[FileSummary], context: ExportContext, sink: Sink) -> None:
        layout = Layout.of(files, context, exporter=self.name, text=None)
        _finish.write_description(layout, context, sink)

    def _payload(self, schema: pa.Schema) -> str:
        return _columns.choose_payload(self.name, self.payload, schema)

    def _annotations(self, schema: pa.Schema) -> list[str]:
        chosen = _columns.annotation_names(schema) if self.columns is None else self.columns
        return [name for name in chosen if name not in (UID, KEY)]

    def _file_schema(self, rows: pa.Schema) -> pa.Schema:
        column = media_column(self._payload(rows))
        fields = [rows.field(UID), rows.field(KEY), pa.field(column, MEDIA_TYPE)]
        annotations = [rows.field(name) for name in self._annotations(rows)]
        fields += [f.with_type(_manifest.readable_type(f.type)) for f in annotations]
        return pa.schema(fields, metadata=features_metadata(column))

    def _convert(
        self, batch: pa.RecordBatch, schema: pa.Schema, column: str, extensions: Counter[str]
    ) -> pa.RecordBatch:
        keys, payload = batch.column(KEY).to_pylist(), self._payload(batch.schema)
        views = list(_columns.payload_views(batch, payload, batch.column(UID).to_pylist()))
        names = [self._extension(view) for view in views]
        extensions.update(names)
        paths = [f"{key}.{name}" for key, name in zip(keys, names, strict=True)]
        media = pa.StructArray.from_arrays(
            [batch.column(payload).cast(pa.binary()), pa.array(paths, pa.string())],
            fields=list(MEDIA_TYPE),
        )
        arrays = [media if f.name == column else batch.column(f.name).cast(f.type) for f in schema]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _extension(self, view: memoryview) -> str:
        if self.extension != "auto":
            return self.extension
        return media_extension(bytes(view[:HEAD_BYTES]))


def _sizes(column: str) -> Callable[[pa.RecordBatch], Iterable[int]]:
    def sizes(batch: pa.RecordBatch) -> list[int]:
        lengths: list[int] = pc.binary_length(batch.column(column).field("bytes")).to_pylist()
        return lengths

    return sizes

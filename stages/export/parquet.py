"""Parquet files with the media inside, as Hugging Face datasets reads and shows them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError
from winnow.contracts.exporter import ExportContext, Exporter, FileSummary, Sink
from winnow.contracts.parameters import later, result
from winnow.contracts.registry import register_exporter
from winnow.stages.export import _columns, _finish, _manifest
from winnow.stages.export._columns import KEY, UID
from winnow.stages.export._layout import Layout
from winnow.stages.export._sniff import payload_extension

GROUP_ROWS = 1000
GROUP_BYTES = 64 << 20
MAX_OFFSET = 2**31 - 1
MEDIA_TYPE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
"""What ``datasets`` stores for an Image() or Audio() feature."""


def media_columns(payloads: Sequence[str]) -> dict[str, str]:
    """Return payload -> the column it goes to: "audio" or "image", as consumers expect; the second
    image (or recording) keeps its own name."""
    own = _columns.own_names(payloads)
    return {
        name: name if is_own else _columns.media_kind(name)
        for name, is_own in zip(payloads, own, strict=True)
    }


def features_metadata(columns: Iterable[str]) -> dict[str, str] | None:
    """Return the schema metadata that makes ``datasets`` decode the columns; None without any."""
    features = {name: {"_type": _columns.media_kind(name).capitalize()} for name in columns}
    return {"huggingface": json.dumps({"info": {"features": features}})} if features else None


@register_exporter("parquet", version=1)
@dataclass(frozen=True, kw_only=True, slots=True)
class Parquet(Exporter):
    """Write Parquet files with the media and every annotation of a row side by side.

    Reads:   uid: fixed_size_binary(16); key: string; the payload: large_binary, not null; of
             several, null where a row has not this one; every annotation column.
    Writes:  00000.parquet ... with ``rows_per_file`` rows each: uid, key, then ``image`` (or
             ``audio``): struct<bytes: binary, path: string> with the feature of that name in the
             schema's metadata (both, where both are payloads; a second image or recording has its
             own column's name), then the annotations as they are (lists of fixed_size_binary as
             lists of binary, which pandas can read). Row groups of at most 1,000 rows and 64 MB
             of media. files.json, croissant.json, README.md.
             Sidecars of the source and references into local files are left out.
    Cost:    CPU; holds one row group.
    Fails:   ShardError, not retryable, where a row has no payload.

    payload: the column with the bytes; a list of columns; [] for text alone; null = image, else
        audio, else the first there is, else text alone.
    require: of several payloads, a row must have "any" (at least one) or "all". The filter
        ``has_media`` drops the others first, so that the ledger has them.
    columns: annotations to write; null = all.
    extension: in ``path``; "auto" = by the first bytes of the payload.
    seed, shuffle: the order of the rows, which the pipeline makes before they come here.
    """

    payload: str | tuple[str, ...] | None = result(None)
    columns: tuple[str, ...] | None = result(None)
    extension: str = result("auto")
    rows_per_file: int = result(10_000)
    seed: int = result(0)
    shuffle: Literal["bucket", "global"] = result("bucket")
    require: Literal["any", "all"] = later("any")

    def __post_init__(self) -> None:
        if self.rows_per_file < 1:
            msg = f"parquet: rows_per_file={self.rows_per_file}; use 1 or more"
            raise RecipeError(msg)
        _columns.check_payloads("parquet", self.payload, self.extension)

    def payloads(self, columns: pa.Schema) -> list[str]:
        payloads = _columns.choose_payloads(self.name, self.payload, columns)
        _columns.check_annotations(self.name, self.columns or (), columns)
        targets = list(media_columns(payloads).values())
        for column in targets:
            if column in self._annotations(columns):
                msg = f"parquet: the column {column!r} is there already; leave it out"
                raise RecipeError(msg)
            if targets.count(column) > 1:
                msg = f"parquet: two payloads would be the column {column!r}; name it first"
                raise RecipeError(msg)
        return payloads

    def file_name(self, index: int) -> str:
        return f"{index:05d}.parquet"

    def write_file(self, rows: Iterator[pa.RecordBatch], out: BinaryIO) -> Mapping[str, Any]:
        first = next(rows, None)
        if first is None:
            return {}
        payloads = _columns.choose_payloads(self.name, self.payload, first.schema)
        targets = media_columns(payloads)
        schema = self._file_schema(first.schema, targets)
        extensions = {column: Counter[str]() for column in targets.values()}
        parts = _castable(chain((first,), rows), payloads)
        batches = (self._convert(part, schema, targets, extensions) for part in parts)
        media = list(extensions)
        groups = _manifest.row_groups(batches, schema, GROUP_ROWS, GROUP_BYTES, _sizes(media))
        with _manifest.open_parquet(out, schema, payloads=media) as writer:
            for table in groups:
                writer.write_table(table, row_group_size=table.num_rows)
        counts = {name: dict(sorted(counter.items())) for name, counter in extensions.items()}
        total = sum(extensions.values(), Counter[str]())
        extra: dict[str, Any] = {
            "columns": [name for name in schema.names if name not in media],
            "payload": media[0] if len(media) == 1 else "",
            "extensions": dict(sorted(total.items())),
        }
        return extra if len(media) == 1 else extra | {"payloads": counts}

    def finish(self, files: Sequence[FileSummary], context: ExportContext, sink: Sink) -> None:
        layout = Layout.of(files, context, exporter=self.name, text=None)
        _finish.write_description(layout, context, sink)

    def _annotations(self, schema: pa.Schema) -> list[str]:
        chosen = _columns.annotation_names(schema) if self.columns is None else self.columns
        return [name for name in chosen if name not in (UID, KEY)]

    def _file_schema(self, rows: pa.Schema, targets: Mapping[str, str]) -> pa.Schema:
        fields = [rows.field(UID), rows.field(KEY)]
        fields += [pa.field(column, MEDIA_TYPE) for column in targets.values()]
        annotations = [rows.field(name) for name in self._annotations(rows)]
        fields += [f.with_type(_manifest.readable_type(f.type)) for f in annotations]
        return pa.schema(fields, metadata=features_metadata(targets.values()))

    def _convert(
        self,
        batch: pa.RecordBatch,
        schema: pa.Schema,
        targets: Mapping[str, str],
        extensions: Mapping[str, Counter[str]],
    ) -> pa.RecordBatch:
        keys, uids = batch.column(KEY).to_pylist(), batch.column(UID).to_pylist()
        payloads = list(targets)
        media: dict[str, pa.Array] = {}
        found = _columns.row_payloads(batch, payloads, self.require, uids)
        for name, views in zip(payloads, found, strict=True):
            kinds = [
                None if view is None else payload_extension(self.extension, view) for view in views
            ]
            extensions[targets[name]].update(kind for kind in kinds if kind is not None)
            stem = "" if targets[name] == _columns.media_kind(name) else f".{name}"
            paths = [
                None if kind is None else f"{key}{stem}.{kind}"
                for key, kind in zip(keys, kinds, strict=True)
            ]
            media[targets[name]] = pa.StructArray.from_arrays(
                [batch.column(name).cast(pa.binary()), pa.array(paths, pa.string())],
                fields=list(MEDIA_TYPE),
                mask=batch.column(name).is_null(),
            )
        arrays = [
            media[f.name] if f.name in media else batch.column(f.name).cast(f.type) for f in schema
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _castable(
    batches: Iterable[pa.RecordBatch], payloads: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """Yield batches whose media have 32-bit offsets; where they have not, rows, each copied: Arrow
    refuses a slice of a long buffer too."""
    for batch in batches:
        buffers = (batch.column(name).buffers()[-1] for name in payloads)
        if all(buffer is None or buffer.size <= MAX_OFFSET for buffer in buffers):
            yield batch
        else:
            yield from (batch.take(pa.array([row])) for row in range(batch.num_rows))


def _sizes(columns: Sequence[str]) -> Callable[[pa.RecordBatch], Iterable[int]]:
    def sizes(batch: pa.RecordBatch) -> Iterable[int]:
        total = np.zeros(batch.num_rows, np.int64)
        for name in columns:
            lengths = pc.binary_length(batch.column(name).field("bytes"))
            total += pc.fill_null(lengths, 0).to_numpy()
        found: list[int] = total.tolist()
        return found

    return sizes

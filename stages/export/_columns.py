"""Which columns an exporter writes: payloads, texts and annotations, by name and type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.media import MEDIA_REF
from winnow.stages.export._sidecars import MEMBERS

UID, KEY = "uid", "key"
PREFERRED_PAYLOADS = ("image", "audio")


def available_payloads(schema: pa.Schema) -> list[str]:
    """Return the payloads that the rows have, as bytes or by reference; image and audio first."""
    names = [f.name for f in schema if pt.is_large_binary(f.type)]
    names += [f.name.removesuffix("_ref") for f in schema if f.type == MEDIA_REF]
    preferred = [name for name in PREFERRED_PAYLOADS if name in names]
    return list(dict.fromkeys([*preferred, *names]))


def choose_payload(exporter: str, wanted: str | None, schema: pa.Schema) -> str:
    """Return the payload column to write; RecipeError where there is none of that name."""
    available = available_payloads(schema)
    if wanted is None:
        if available:
            return available[0]
        msg = (
            f"{exporter}: no column holds media bytes (large_binary); add the stage `download`, "
            f"or a source of local media"
        )
        raise RecipeError(msg)
    if wanted in available:
        return wanted
    msg = f"{exporter}: payload={wanted!r} is not a column with media bytes; {_known(available)}"
    raise RecipeError(msg)


def check_annotations(exporter: str, wanted: Iterable[str], schema: pa.Schema) -> None:
    """Raise RecipeError unless every wanted column is an annotation."""
    known = annotation_names(schema)
    for name in wanted:
        if name not in known and name not in (UID, KEY):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else _known(known)
            msg = f"{exporter}: columns: {name!r} is not an annotation; {hint}"
            raise RecipeError(msg)


def check_text(exporter: str, text: str | None, schema: pa.Schema) -> None:
    """Raise RecipeError unless ``text`` is a string column."""
    if text is None:
        return
    if text not in schema.names:
        texts = [f.name for f in schema if _is_text(f.type)]
        msg = (
            f"{exporter}: text={text!r} is not a column; {_known(texts)}, "
            f"or `text: null` for samples without a caption"
        )
        raise RecipeError(msg)
    if not _is_text(schema.field(text).type):
        msg = f"{exporter}: text={text!r} is {schema.field(text).type}, not a string column"
        raise RecipeError(msg)


def annotation_names(schema: pa.Schema) -> list[str]:
    """Return the columns a consumer may see: no payloads, and no paths of the machine that read."""
    return [f.name for f in schema if is_annotation(f)]


def is_annotation(field: pa.Field) -> bool:
    """Whether a column is data about the row, neither media bytes nor a reference into files."""
    if pt.is_large_binary(field.type) or field.type == MEDIA_REF:
        return False
    return field.name != MEMBERS


def payload_views(batch: pa.RecordBatch, name: str, uids: list[bytes]) -> Iterator[memoryview]:
    """Yield the bytes of each row without copying; ShardError at a row that has none."""
    column = batch.column(name)
    if column.type != pa.large_binary():
        column = column.cast(pa.large_binary())
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        msg = (
            f"the row was selected for export but has no {name}; add a filter that drops such "
            f'rows, for example `where: "{name}_error is None"` of the stage that writes it'
        )
        raise ShardError(msg, stage="export", uid=uids[row].hex(), retryable=False)
    _, positions, values = column.buffers()
    bytes_of_column = memoryview(values) if values is not None else memoryview(b"")
    # An empty array may come without an offsets buffer.
    offsets = np.frombuffer(positions or bytes(8), np.int64)
    bounds = offsets[column.offset : column.offset + len(column) + 1].tolist()
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        yield bytes_of_column[start:stop]


def _is_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _known(names: list[str]) -> str:
    return f"there is {', '.join(names)}" if names else "there is none"

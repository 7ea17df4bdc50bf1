"""Which columns an exporter writes: payloads, texts and annotations, by name and type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from winnow.contracts.errors import RecipeError, ShardError
from winnow.contracts.media import MEDIA_REF
from winnow.stages.export._sidecars import MEMBERS

UID, KEY, FETCHED = "uid", "key", "url"
PREFERRED_PAYLOADS = ("image", "audio")
Require = Literal["any", "all"]
"""Which of several payloads a row must have."""
Wanted = str | tuple[str, ...] | None
"""The parameter ``payload``: one column, a list of them, [] for text alone, null for the first."""


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
            f"or a source of local media; or set payload: [] to export text alone"
        )
        raise RecipeError(msg)
    if wanted in available:
        return wanted
    msg = f"{exporter}: payload={wanted!r} is not a column with media bytes; {_known(available)}"
    raise RecipeError(msg)


def choose_payloads(exporter: str, wanted: Wanted, schema: pa.Schema) -> list[str]:
    """Return the payload columns to write, in the order that was asked for; none for text alone.

    null: image, else audio, else the first there is, else none; but a table of URLs of which
    nothing was fetched is a RecipeError, as is a name that is no payload, or is there twice.
    """
    if isinstance(wanted, tuple):
        for name in wanted:
            if wanted.count(name) > 1:
                msg = f"{exporter}: payload names {name!r} twice"
                raise RecipeError(msg)
        return [choose_payload(exporter, name, schema) for name in wanted]
    if wanted is None and not available_payloads(schema) and FETCHED not in schema.names:
        return []
    return [choose_payload(exporter, wanted, schema)]


def check_payloads(exporter: str, wanted: Wanted, extension: str) -> None:
    """Raise RecipeError where one fixed extension would name several payloads."""
    if isinstance(wanted, tuple) and len(wanted) > 1 and extension != "auto":
        msg = (
            f"{exporter}: extension={extension!r} would name {len(wanted)} payloads alike; "
            "leave it out, so that each is named by its format"
        )
        raise RecipeError(msg)


def media_kind(column: str) -> str:
    """Return "audio" or "image", as consumers call what a payload column holds."""
    return "audio" if "audio" in column else "image"


def own_names(payloads: Sequence[str]) -> list[bool]:
    """Return for each payload whether an earlier one is of its kind: it goes by its own name."""
    kinds = [media_kind(name) for name in payloads]
    return [kind in kinds[:place] for place, kind in enumerate(kinds)]


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
    column = _binary(batch, name)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        msg = (
            f"the row was selected for export but has no {name}; add a filter that drops such "
            f'rows, for example `where: "{name}_error is None"` of the stage that writes it'
        )
        raise ShardError(msg, stage="export", uid=uids[row].hex(), retryable=False)
    yield from _views(column)


def row_payloads(
    batch: pa.RecordBatch, names: Sequence[str], require: Require, uids: list[bytes]
) -> list[list[memoryview | None]]:
    """Return, per payload column, the bytes of each row; None where a row has not this one.

    Raises ShardError at a row without its one payload, with none of several, without one of them
    where all are required, or whose media have changed since the row was selected.
    """
    if len(names) == 1:
        return [list(payload_views(batch, names[0], uids))]
    columns = [_binary(batch, name) for name in names]
    there = np.array([column.is_valid().to_numpy(zero_copy_only=False) for column in columns])
    if names:
        enough = np.asarray(there.all(axis=0) if require == "all" else there.any(axis=0))
        _refuse(~enough, f"has not {require} of {', '.join(names)}", uids)
    for name, valid in zip(names, there, strict=True):
        if f"{name}_ref" in batch.schema.names:
            stated = batch.column(f"{name}_ref").is_valid().to_numpy(zero_copy_only=False)
            _refuse(stated & ~valid, f"has another {name} now, or none: its file changed", uids)
    return [
        [view if is_there else None for view, is_there in zip(_views(column), valid, strict=True)]
        for column, valid in zip(columns, there.tolist(), strict=True)
    ]


def _refuse(rows: np.ndarray, problem: str, uids: list[bytes]) -> None:
    if rows.any():
        uid = uids[int(rows.argmax())].hex()
        msg = f"the row was selected for export but {problem}"
        raise ShardError(msg, stage="export", uid=uid, retryable=False)


def _binary(batch: pa.RecordBatch, name: str) -> pa.Array:
    column = batch.column(name)
    return column if column.type == pa.large_binary() else column.cast(pa.large_binary())


def _views(column: pa.Array) -> Iterator[memoryview]:
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

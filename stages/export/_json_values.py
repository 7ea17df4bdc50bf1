"""Arrow columns as values that JSON can hold, and the same mapping as Hugging Face features.

null, NaN and infinities -> null; binary -> lower-case hex; dates, times and timestamps -> ISO 8601
(timestamps with a zone in UTC with a final Z; null beyond the years -32767 to 32767); decimals and
uint64 -> strings of digits (readers of JSON overflow at 2**63, or lose digits at 2**53); durations
-> integers in their unit; maps -> lists of {"key", "value"}; float32 and float16 -> the shortest
decimal of the float32.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt


def json_values(array: pa.Array) -> list[Any]:
    """Return one JSON-able Python value per element."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return json_values(array.storage)
    if pt.is_dictionary(kind):
        return json_values(array.dictionary_decode())
    if pt.is_floating(kind):
        return _floats(array)
    if _is_binary(kind):
        return [None if v is None else v.hex() for v in array.to_pylist()]
    if pt.is_temporal(kind):
        return _times(array)
    if pt.is_decimal(kind):
        return [None if v is None else format(v, "f") for v in array.to_pylist()]
    if pt.is_uint64(kind):
        return [None if v is None else str(v) for v in array.to_pylist()]
    if pt.is_map(kind):
        return json_values(array.cast(_map_as_list(kind)))
    if _is_list(kind):
        return _lists(array)
    if pt.is_struct(kind):
        return _structs(array)
    values: list[Any] = array.to_pylist()
    return values


def json_feature(kind: pa.DataType) -> dict[str, Any]:
    """Return the feature (as the YAML of a dataset card has it) of what ``json_values`` gives."""
    if isinstance(kind, pa.BaseExtensionType):
        return json_feature(kind.storage_type)
    if pt.is_dictionary(kind):
        return json_feature(kind.value_type)
    if pt.is_floating(kind):
        return {"dtype": "float64" if pt.is_float64(kind) else "float32"}
    if pt.is_uint64(kind):
        return {"dtype": "string"}
    if pt.is_integer(kind) or pt.is_boolean(kind) or pt.is_null(kind):
        return {"dtype": str(kind)}
    if pt.is_duration(kind):
        return {"dtype": "int64"}
    if pt.is_map(kind):
        return json_feature(_map_as_list(kind))
    if _is_list(kind):
        return {"list": _element(json_feature(kind.value_type))}
    if pt.is_struct(kind):
        return {"struct": [{"name": f.name, **json_feature(f.type)} for f in kind]}
    return {"dtype": "string"}


def _element(feature: dict[str, Any]) -> Any:
    """The short forms that ``datasets`` itself writes: a type's name, a struct's fields."""
    if list(feature) == ["dtype"]:
        return feature["dtype"]
    return feature["struct"] if list(feature) == ["struct"] else feature


def _floats(array: pa.Array) -> list[float | None]:
    if not pt.is_float64(array.type):
        # Through text: float32 0.28 becomes 0.28, not 0.2800000011920929.
        array = array.cast(pa.float32())
        finite = pc.if_else(pc.is_finite(array), array, pa.scalar(None, pa.float32()))
        array = finite.cast(pa.string()).cast(pa.float64())
    finite = pc.if_else(pc.is_finite(array), array, pa.scalar(None, pa.float64()))
    values: list[float | None] = finite.to_pylist()
    return values


def _times(array: pa.Array) -> list[Any]:
    kind = array.type
    if pt.is_duration(kind):
        return _durations(array)
    if not pt.is_timestamp(kind):
        texts: list[str | None] = array.cast(pa.string()).to_pylist()
        return [None if text is None or text.startswith("<") else text for text in texts]
    # Without the zone no time zone database is needed; the instants are UTC.
    naive = array.cast(pa.int64()).cast(pa.timestamp(kind.unit))
    suffix = "Z" if kind.tz else ""
    instants = naive.cast(pa.string()).to_pylist()
    return [
        None if v is None or v.startswith("<") else v.replace(" ", "T") + suffix for v in instants
    ]


def _durations(array: pa.Array) -> list[int | None]:
    values: list[int | None] = array.cast(pa.int64()).to_pylist()
    return values


def _lists(array: pa.Array) -> list[Any]:
    # flatten() leaves out what null lists cover, so positions follow from the lengths.
    flat = json_values(array.flatten())
    values: list[Any] = []
    start = 0
    for length in pc.list_value_length(array).to_pylist():
        if length is None:
            values.append(None)
        else:
            values.append(flat[start : start + length])
            start += length
    return values


def _structs(array: pa.StructArray) -> list[Any]:
    names = [f.name for f in array.type]
    columns = [json_values(child) for child in array.flatten()]
    rows = zip(*columns, strict=True) if columns else ((),) * len(array)
    valid = array.is_valid().to_pylist()
    return [
        dict(zip(names, r, strict=True)) if v else None for r, v in zip(rows, valid, strict=True)
    ]


def _map_as_list(kind: pa.MapType) -> pa.DataType:
    entry = pa.struct([("key", kind.key_type), ("value", kind.item_type)])
    return pa.list_(entry)


def _is_binary(kind: pa.DataType) -> bool:
    return (
        pt.is_binary(kind)
        or pt.is_large_binary(kind)
        or pt.is_fixed_size_binary(kind)
        or pt.is_binary_view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return (
        pt.is_list(kind)
        or pt.is_large_list(kind)
        or pt.is_fixed_size_list(kind)
        or pt.is_list_view(kind)
        or pt.is_large_list_view(kind)
    )

"""What a rule looked at in the rows that it dropped, as JSON objects, one string a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def json_objects(table: pa.Table, names: Sequence[str], at: np.ndarray) -> pa.Array:
    """Return ``{"column": value, ...}`` for the rows at positions ``at``.

    Each value is put into words once, however many rows have it. Floats have 6 decimals, NaN is
    null, bytes are hexadecimal.
    """
    if not names:
        return pa.array(["{}"] * len(at), pa.string())
    rows = table.select(list(names)).take(pa.array(at))
    parts: list[Any] = []
    for position, name in enumerate(names):
        parts.append(f"{', ' if position else '{'}{json.dumps(name)}: ")
        parts.append(_tokens(rows.column(name)))
    return pc.binary_join_element_wise(*parts, "}", "")


def _tokens(column: pa.ChunkedArray) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = column.combine_chunks()
    if pa.types.is_nested(values.type):
        return pa.array([json.dumps(plain(v)) for v in values.to_pylist()], pa.string())
    encoded = pc.dictionary_encode(values, null_encoding="encode")
    try:
        found = encoded.dictionary.to_pylist()
    except OverflowError:  # a time that Python cannot hold
        found = encoded.dictionary.cast(pa.string()).to_pylist()
    words = [json.dumps(plain(v)) for v in found]
    return pc.take(pa.array(words, pa.string()), encoded.indices)


def plain(value: Any) -> Any:
    """Return a value as JSON can say it."""
    if isinstance(value, float):
        if math.isinf(value):
            return str(value)  # JSON has no infinity
        return None if value != value else round(value, 6)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | bool | None) else str(value)

"""Columns out of a sample's .json: chosen keys, each as one Arrow type; what is not of it is null.

A value of another type is null where the type is wrong and nowhere else: one element of a list, one
field of a struct. Nothing is converted: "3" is no number, 3 no string, true no integer. A number
without a fraction is an integer, 3.0 too. What a type cannot hold (300 as int8, 1e99 as float32,
NaN) is not of it. Dates and timestamps are strings in ISO 8601. Keys that a struct does not name
are left out; half a pair of surrogates becomes U+FFFD.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from winnow.contracts.errors import RecipeError
from winnow.stages.sources._readers import TYPES, whole_strings

logger = logging.getLogger(__name__)

SCALARS: dict[str, pa.DataType] = {
    **TYPES,
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "float32": pa.float32(),
}
"""The types of a single value: those of a table's column, and smaller numbers."""
_LARGEST_FLOAT32 = 3.4028234663852886e38


def json_type(text: str) -> pa.DataType | None:
    """Return the type that a text names: one of ``SCALARS``, ``list<TYPE>`` or
    ``struct<NAME: TYPE, ...>``, within each other too; None where it names none.

    >>> json_type("list<struct<text: string, image: int32>>")
    ListType(list<item: struct<text: string, image: int32>>)
    """
    text = text.strip()
    outer, opened, inner = text.removesuffix(">").partition("<")
    if not opened or not text.endswith(">"):
        return SCALARS.get(text)
    if outer.strip() == "list":
        element = json_type(inner)
        return None if element is None else pa.list_(element)
    if outer.strip() != "struct":
        return None
    fields: dict[str, pa.DataType] = {}
    for part in _parts(inner):
        name, _, of = part.partition(":")
        kind = json_type(of)
        if kind is None or not name.strip() or name.strip() in fields:
            return None
        fields[name.strip()] = kind
    return pa.struct(list(fields.items()))


@dataclass(frozen=True, slots=True)
class JsonColumns:
    """The columns that a recipe asks for, keys and fields in one order.

    keys: those of the .json. fields: the columns of the rows.
    """

    keys: tuple[str, ...]
    fields: pa.Schema

    @classmethod
    def of(
        cls, source: str, types: Mapping[str, str], rename: Mapping[str, str], taken: Sequence[str]
    ) -> JsonColumns:
        """Return the columns of ``types`` (key -> name of its type) by their names in the rows.

        taken: names that the rows have already. Fails: RecipeError for a name that is taken (case
        does not count, as to DuckDB and many readers), for what names no type, and for renaming
        what is not there.
        """
        for key in rename:
            if key not in types:
                msg = f"{source}: rename is for json_columns, and {key!r} is not one"
                raise RecipeError(msg)
        seen, fields = {name.lower() for name in taken}, []
        for key, text in types.items():
            kind = json_type(text)
            if kind is None:
                msg = (
                    f"{source}: json_columns: {key}: {text!r} is not a type; use one of "
                    f"{', '.join(SCALARS)}, list<TYPE> or struct<NAME: TYPE, ...>"
                )
                raise RecipeError(msg)
            name = rename.get(key, key)
            if not name or name.lower() in seen:
                msg = (
                    f"{source}: json_columns: {key!r} would be {name!r}, but another column has "
                    f"that name (case does not count); set rename: {{{key}: original_{key}}}"
                )
                raise RecipeError(msg)
            seen.add(name.lower())
            fields.append(pa.field(name, kind))
        return cls(tuple(types), pa.schema(fields))


@dataclass(frozen=True, slots=True)
class JsonReader:
    """Reads the columns of one file's rows. found, wrong: by key, values that were there, and
    nulls in the place of values of another type."""

    columns: JsonColumns
    found: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    def arrays(self, documents: Sequence[str | None]) -> list[pa.Array]:
        """Return the columns of some rows, by the texts of their .json; null where one is null, is
        no JSON object, or has no such key."""
        if not self.columns.keys:
            return []
        rows = [_object(text) for text in documents]
        arrays = []
        for key, kind in zip(self.columns.keys, self.columns.fields.types, strict=True):
            values = [row.get(key) for row in rows]
            array, wrong = json_array(values, kind)
            self.found[key] += sum(value is not None for value in values)
            self.wrong[key] += wrong
            arrays.append(array)
        return arrays

    def warn(self, file: str) -> None:
        """Say in the log which columns are not what was asked for."""
        for key, kind in zip(self.columns.keys, self.columns.fields.types, strict=True):
            if not self.found[key]:
                logger.warning("%s: no .json has a value of %r", file, key)
            if wrong := self.wrong[key]:
                text = "%s: json_columns: %d values in %r are not of %s, and null"
                logger.warning(text, file, wrong, key, kind)


def json_array(values: Sequence[Any], kind: pa.DataType) -> tuple[pa.Array, int]:
    """Return values of JSON as an array, and how many of them, or within them, became null."""
    if pt.is_list(kind):
        lists = [value if isinstance(value, list) else None for value in values]
        ends = itertools.accumulate(len(one or ()) for one in lists)
        inner, wrong = json_array([v for one in lists for v in one or ()], kind.value_type)
        offsets = pa.array([0, *ends], pa.int32())
        array = pa.ListArray.from_arrays(offsets, inner, type=kind, mask=_nulls(lists))
    elif pt.is_struct(kind):
        objects = [value if isinstance(value, dict) else None for value in values]
        pairs = [json_array([(one or {}).get(f.name) for one in objects], f.type) for f in kind]
        children, wrong = [array for array, _ in pairs], sum(count for _, count in pairs)
        array = pa.StructArray.from_arrays(children, fields=list(kind), mask=_nulls(objects))
    else:
        array, wrong = _single(values, kind), 0
    given = sum(value is not None for value in values)
    return array, wrong + given - (len(array) - array.null_count)


def _single(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pt.is_boolean(kind):
        return pa.array([v if isinstance(v, bool) else None for v in values], kind)
    if pt.is_integer(kind):
        top = 1 << (kind.bit_width - 1)
        whole = [int(v) if _is_number(v) and v == v // 1 else None for v in values]
        return pa.array([v if v is not None and -top <= v < top else None for v in whole], kind)
    if pt.is_floating(kind):
        top = _LARGEST_FLOAT32 if pt.is_float32(kind) else math.inf
        return pa.array([_float(v, top) for v in values], kind)
    strings = whole_strings([v if isinstance(v, str) else None for v in values])
    return strings if pt.is_string(kind) else _times(strings, kind)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _float(value: Any, top: float) -> float | None:
    try:
        number = float(value) if _is_number(value) else math.nan
    except OverflowError:  # an integer of 400 digits
        return None
    return number if abs(number) <= top else None


def _times(strings: pa.StringArray, kind: pa.DataType) -> pa.Array:
    try:
        return strings.cast(kind)
    except pa.ArrowInvalid:
        pieces = []
        for at in range(len(strings)):
            try:
                pieces.append(strings.slice(at, 1).cast(kind))
            except pa.ArrowInvalid:
                pieces.append(pa.nulls(1, kind))
        return pa.concat_arrays(pieces)


def _object(text: str | None) -> dict[str, Any]:
    try:
        document = json.loads((text or "null").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _nulls(values: Sequence[object]) -> pa.BooleanArray:
    return pa.array([value is None for value in values], pa.bool_())


def _parts(text: str) -> Iterator[str]:
    """Yield what commas part, those within <> aside."""
    depth, start = 0, 0
    for at, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "," and not depth:
            yield text[start:at]
            start = at + 1
    yield text[start:]

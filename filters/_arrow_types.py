"""How values of different Arrow types meet in one comparison. No expression classes here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

Value = str | int | float | bool
Kind = Literal["number", "string", "boolean"]

INTEGER_RANGE = (-(2**63), 2**64 - 1)
"""Least and greatest integer literal: what an int64 or a uint64 column can hold."""


_ANY_INTEGER = pa.decimal128(20, 0)
"""Where signed integers meet unsigned ones: exact, which float64 is not."""


class Operand(NamedTuple):
    """One side of a comparison; ``constant`` is None where the side depends on the row."""

    arrow: pc.Expression
    kind: pa.DataType
    constant: Value | None = None


def kind_of_type(kind: pa.DataType) -> Kind | None:
    """Return what a column of this type is to a recipe; None where it cannot be compared."""
    if pa.types.is_dictionary(kind):
        return kind_of_type(kind.value_type)
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    return None


def computed_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a stored column is computed in: no dictionaries, no half floats."""
    if pa.types.is_dictionary(kind):
        return computed_type(kind.value_type)
    return pa.float32() if pa.types.is_float16(kind) else kind


def constant_type(value: Value) -> pa.DataType:
    """Return the type of a literal on its own."""
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.uint64() if value >= 2**63 else pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def constant(value: Value, kind: pa.DataType) -> pc.Expression:
    """Return a literal of exactly this type; float32 rounds to nearest."""
    if pa.types.is_floating(kind):
        return pc.scalar(pa.scalar(float(value), pa.float64()).cast(kind))
    return pc.scalar(pa.scalar(value, kind))


def nan_to_null(arrow: pc.Expression, kind: pa.DataType) -> pc.Expression:
    """Return the number with NaN as null."""
    return pc.if_else(pc.is_nan(arrow), pa.scalar(None, kind), arrow)


def fit(left: Operand, right: Operand) -> tuple[pc.Expression, pc.Expression]:
    """Return both sides in one type.

    A literal takes the type of the floating-point value it is compared with, so that a float32
    0.9 is ``>= 0.9``. Integers meet as integers; anything else meets in float64.
    """
    if left.constant is None and right.constant is not None:
        kind = _type_with_literal(left.kind, right.constant)
    elif left.constant is not None and right.constant is None:
        kind = _type_with_literal(right.kind, left.constant)
    else:
        kind = _common_type(left.kind, right.kind)
    return _as(left, kind), _as(right, kind)


def any_of(conditions: Iterable[pc.Expression]) -> pc.Expression:
    """Return the three-valued disjunction as a balanced tree: Arrow recurses over its depth."""
    level = list(conditions)
    while len(level) > 1:
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [pc.or_kleene(a, b) for a, b in pairs] + level[len(level) & ~1 :]
    return level[0]


def _type_with_literal(kind: pa.DataType, value: Value) -> pa.DataType:
    if pa.types.is_floating(kind) or not pa.types.is_integer(kind):
        return kind
    if isinstance(value, float):
        if not value.is_integer() or not INTEGER_RANGE[0] <= value <= INTEGER_RANGE[1]:
            return pa.float64()
        value = int(value)
    if pa.types.is_uint64(kind):
        return _ANY_INTEGER if value < 0 else kind  # type: ignore[operator]
    return _ANY_INTEGER if value >= 2**63 else pa.int64()  # type: ignore[operator]


def _common_type(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    if left == right:
        return left
    if pa.types.is_integer(left) and pa.types.is_integer(right):
        mixed = pa.types.is_uint64(left) != pa.types.is_uint64(right)
        return _ANY_INTEGER if mixed else pa.int64()
    return pa.large_string() if kind_of_type(left) == "string" else pa.float64()


def _whole(value: Value) -> Value:
    return int(value) if isinstance(value, float) else value


def _as(side: Operand, kind: pa.DataType) -> pc.Expression:
    if side.constant is not None:
        value = side.constant
        return constant(value if pa.types.is_floating(kind) else _whole(value), kind)
    return side.arrow if side.kind == kind else side.arrow.cast(kind, safe=False)

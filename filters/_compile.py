"""Compile an expression to Arrow, and evaluate it over a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from winnow.filters import _arrow_types as types
from winnow.filters._nodes import (
    FUNCTIONS,
    Arithmetic,
    Call,
    Column,
    Compare,
    Constant,
    Expr,
    IsIn,
    IsNull,
    Logic,
    Not,
)

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": pc.add,
    "-": pc.subtract,
    "*": pc.multiply,
    "/": pc.divide,
}


def evaluate(expr: Expr, table: pa.Table) -> pa.ChunkedArray:
    """Return the boolean column (with nulls) of a condition over a table."""
    names = sorted(expr.columns())
    # A projection of no column has no row count; keep any column for constants.
    narrow = table.select(names) if names else table.select(table.column_names[:1])
    from pyarrow import acero

    plan = acero.Declaration.from_sequence(
        [
            acero.Declaration("table_source", acero.TableSourceNodeOptions(narrow)),
            acero.Declaration(
                "project", acero.ProjectNodeOptions([to_arrow(expr, narrow.schema)], ["keep"])
            ),
        ]
    )
    return plan.to_table(use_threads=False)["keep"]


def to_arrow(expr: Expr, schema: pa.Schema) -> pc.Expression:
    """Return the Arrow form of an expression that ``kind`` has accepted for this schema."""
    match expr:
        case Constant(value=value):
            return types.constant(value, expr.arrow_type(schema))
        case Compare(op=op, left=left, right=right):
            return _COMPARE[op](*types.fit(_operand(left, schema), _operand(right, schema)))
        case Logic(op=op, left=left, right=right):
            join = pc.and_kleene if op == "and" else pc.or_kleene
            return join(to_arrow(left, schema), to_arrow(right, schema))
        case Not(child=child):
            return pc.invert(to_arrow(child, schema))
        case IsNull(child=Column(name=name)):  # any column, also one that cannot be compared
            return pc.field(name).is_null(nan_is_null=True)
        case IsNull(child=child):
            return to_arrow(child, schema).is_null(nan_is_null=True)
        case IsIn():
            return _is_in(expr, schema)
        case Column() | Arithmetic() | Call():
            value, kind = _with_nan(expr, schema), expr.arrow_type(schema)
            return types.nan_to_null(value, kind) if pa.types.is_floating(kind) else value
    raise NotImplementedError(type(expr).__name__)


def _with_nan(expr: Expr, schema: pa.Schema) -> pc.Expression:
    """Compile a value whose NaN is not null yet.

    NaN goes through arithmetic as null does; turning it into null names its operand twice,
    so doing that at every level would double the work with every level.
    """
    match expr:
        case Column(name=name):
            kind, field = expr.arrow_type(schema), pc.field(name)
            return field if kind == schema.field(name).type else field.cast(kind)
        case Arithmetic(op=op, left=left, right=right):
            # Not safe: the safe cast raises for integers above 2**53 instead of rounding them.
            sides = (_with_nan(s, schema).cast(pa.float64(), safe=False) for s in (left, right))
            return _ARITHMETIC[op](*sides)
        case Call(function=function, child=child):
            kind, argument = expr.arrow_type(schema), _with_nan(child, schema)
            if function == "length":
                return FUNCTIONS[function][2](argument).cast(kind)
            return FUNCTIONS[function][2](argument.cast(kind))
    return to_arrow(expr, schema)


def _is_in(expr: IsIn, schema: pa.Schema) -> pc.Expression:
    child = _operand(expr.child, schema)
    if not expr.values:
        no = pa.scalar(False)
        return pc.if_else(child.arrow.is_null(), pa.scalar(None, pa.bool_()), no)
    pairs = (types.fit(child, _operand(Constant(v), schema)) for v in expr.values)
    return types.any_of(left == right for left, right in pairs)


def _operand(expr: Expr, schema: pa.Schema) -> types.Operand:
    constant = expr.value if isinstance(expr, Constant) else None
    return types.Operand(to_arrow(expr, schema), expr.arrow_type(schema), constant)

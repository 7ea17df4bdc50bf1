"""Expressions over columns: predicates as data, printed, type-checked, compiled to Arrow.

    col("clip_score") >= 0.28
    (col("language") == "en") & (col("num_words") > 2)

Null means unknown, as in SQL; NaN is null. A row for which the whole expression is null is neither
kept nor refused by it: the recipe's ``on_null`` decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError

Value = str | int | float | bool
Kind = Literal["number", "string", "boolean"]

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
FUNCTIONS: dict[str, tuple[Kind, Kind, Callable[[Any], Any]]] = {
    "length": ("string", "number", pc.utf8_length),
    "lower": ("string", "string", pc.utf8_lower),
    "abs": ("number", "number", pc.abs),
}
"""Functions of one argument that ``where`` knows: (argument, result, Arrow function)."""


class Expr:
    """Base of all nodes. Combine with ``& | ~``; ``and``, ``or``, ``not`` cannot be overloaded."""

    __slots__ = ()

    def columns(self) -> frozenset[str]:
        """Return the names of all columns the expression reads."""
        return frozenset().union(*(c.columns() for c in self._children()))

    def kind(self, schema: pa.Schema) -> Kind:
        """Return the kind of the result; raise RecipeError where the types do not fit."""
        raise NotImplementedError

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        """Compile for a schema that ``kind`` has accepted."""
        raise NotImplementedError

    def _children(self) -> tuple[Expr, ...]:
        return ()

    def __bool__(self) -> bool:
        msg = "an expression has no truth value; use & | ~ instead of and, or, not"
        raise TypeError(msg)

    def __eq__(self, other: object) -> Any:
        return Compare("==", self, literal(other))

    def __ne__(self, other: object) -> Any:
        return Compare("!=", self, literal(other))

    def __lt__(self, other: object) -> Expr:
        return Compare("<", self, literal(other))

    def __le__(self, other: object) -> Expr:
        return Compare("<=", self, literal(other))

    def __gt__(self, other: object) -> Expr:
        return Compare(">", self, literal(other))

    def __ge__(self, other: object) -> Expr:
        return Compare(">=", self, literal(other))

    def __and__(self, other: Expr) -> Expr:
        return Logic("and", self, other)

    def __or__(self, other: Expr) -> Expr:
        return Logic("or", self, other)

    def __invert__(self) -> Expr:
        return Not(self)

    def __add__(self, other: object) -> Expr:
        return Arithmetic("+", self, literal(other))

    def __sub__(self, other: object) -> Expr:
        return Arithmetic("-", self, literal(other))

    def __mul__(self, other: object) -> Expr:
        return Arithmetic("*", self, literal(other))

    def __truediv__(self, other: object) -> Expr:
        return Arithmetic("/", self, literal(other))

    def is_null(self) -> Expr:
        """Return the expression that is true where this one is null (or NaN)."""
        return IsNull(self)

    def is_in(self, values: tuple[Value, ...]) -> Expr:
        """Return membership in a fixed set."""
        return IsIn(self, values)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True, eq=False)
class Column(Expr):
    """A column by name."""

    name: str

    def columns(self) -> frozenset[str]:
        return frozenset({self.name})

    def kind(self, schema: pa.Schema) -> Kind:
        index = schema.get_field_index(self.name)
        if index < 0:
            msg = f"there is no column {self.name!r}; columns here: {', '.join(schema.names)}"
            raise RecipeError(msg)
        kind = _kind_of_type(schema.field(index).type)
        if kind is None:
            msg = f"column {self.name!r} is {schema.field(index).type}, which cannot be compared"
            raise RecipeError(msg)
        return kind

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        field, kind = pc.field(self.name), schema.field(self.name).type
        if pa.types.is_floating(kind):
            return pc.if_else(pc.is_nan(field), pa.scalar(None, kind), field)
        if pa.types.is_dictionary(kind):
            return field.cast(pa.string())
        return field

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class Constant(Expr):
    """A literal; cast to the type of the column it is compared with."""

    value: Value

    def kind(self, schema: pa.Schema) -> Kind:
        if isinstance(self.value, bool):
            return "boolean"
        return "string" if isinstance(self.value, str) else "number"

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        return pc.scalar(self.value)

    def __str__(self) -> str:
        return repr(self.value)


@dataclass(frozen=True, slots=True, eq=False)
class Compare(Expr):
    """``left op right`` for two numbers, two strings or two booleans."""

    op: str
    left: Expr
    right: Expr

    def _children(self) -> tuple[Expr, ...]:
        return (self.left, self.right)

    def kind(self, schema: pa.Schema) -> Kind:
        _same_kind(self, self.left, self.right, schema)
        if self.left.kind(schema) == "boolean" and self.op not in ("==", "!="):
            msg = f"{self}: true and false have no order; use == or !="
            raise RecipeError(msg)
        return "boolean"

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        left, right = self.left.to_arrow(schema), self.right.to_arrow(schema)
        left, right = _fit(self.left, left, self.right, right, schema)
        return _COMPARE[self.op](left, right)

    def __str__(self) -> str:
        return f"{_operand(self.left)} {self.op} {_operand(self.right)}"


@dataclass(frozen=True, slots=True, eq=False)
class Arithmetic(Expr):
    """``left op right`` in float64; division by zero gives infinity or null, never an error."""

    op: str
    left: Expr
    right: Expr

    def _children(self) -> tuple[Expr, ...]:
        return (self.left, self.right)

    def kind(self, schema: pa.Schema) -> Kind:
        for side in (self.left, self.right):
            if side.kind(schema) != "number":
                msg = f"{self}: {side} is not a number"
                raise RecipeError(msg)
        return "number"

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        left = self.left.to_arrow(schema).cast(pa.float64())
        right = self.right.to_arrow(schema).cast(pa.float64())
        value = _ARITHMETIC[self.op](left, right)
        return pc.if_else(pc.is_nan(value), pa.scalar(None, pa.float64()), value)

    def __str__(self) -> str:
        return f"{_operand(self.left)} {self.op} {_operand(self.right)}"


@dataclass(frozen=True, slots=True, eq=False)
class Logic(Expr):
    """``left and right`` / ``left or right`` with SQL's three values (Kleene)."""

    op: Literal["and", "or"]
    left: Expr
    right: Expr

    def _children(self) -> tuple[Expr, ...]:
        return (self.left, self.right)

    def kind(self, schema: pa.Schema) -> Kind:
        for side in (self.left, self.right):
            if side.kind(schema) != "boolean":
                msg = f"{self}: {side} is a {side.kind(schema)}, not a condition"
                raise RecipeError(msg)
        return "boolean"

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        left, right = self.left.to_arrow(schema), self.right.to_arrow(schema)
        return pc.and_kleene(left, right) if self.op == "and" else pc.or_kleene(left, right)

    def __str__(self) -> str:
        sides = [
            f"({s})" if isinstance(s, Logic) and s.op != self.op else str(s)
            for s in (self.left, self.right)
        ]
        return f" {self.op} ".join(sides)


@dataclass(frozen=True, slots=True, eq=False)
class Not(Expr):
    """``not child``."""

    child: Expr

    def _children(self) -> tuple[Expr, ...]:
        return (self.child,)

    def kind(self, schema: pa.Schema) -> Kind:
        if self.child.kind(schema) != "boolean":
            msg = f"{self}: {self.child} is not a condition"
            raise RecipeError(msg)
        return "boolean"

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        return pc.invert(self.child.to_arrow(schema))

    def __str__(self) -> str:
        return f"not ({self.child})"


@dataclass(frozen=True, slots=True, eq=False)
class IsNull(Expr):
    """``child is None``."""

    child: Expr

    def _children(self) -> tuple[Expr, ...]:
        return (self.child,)

    def kind(self, schema: pa.Schema) -> Kind:
        if isinstance(self.child, Column):
            if self.child.name not in schema.names:
                self.child.kind(schema)
        else:
            self.child.kind(schema)
        return "boolean"

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        if isinstance(self.child, Column):
            return pc.field(self.child.name).is_null(nan_is_null=True)
        return self.child.to_arrow(schema).is_null(nan_is_null=True)

    def __str__(self) -> str:
        return f"{_operand(self.child)} is None"


@dataclass(frozen=True, slots=True, eq=False)
class IsIn(Expr):
    """``child in (a, b, ...)``; null where the child is null."""

    child: Expr
    values: tuple[Value, ...]

    def _children(self) -> tuple[Expr, ...]:
        return (self.child,)

    def kind(self, schema: pa.Schema) -> Kind:
        for value in self.values:
            _same_kind(self, self.child, Constant(value), schema)
        return "boolean"

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        found: Expr | None = None
        for value in self.values:
            equal = Compare("==", self.child, Constant(value))
            found = equal if found is None else Logic("or", found, equal)
        return pc.scalar(False) if found is None else found.to_arrow(schema)

    def __str__(self) -> str:
        return f"{_operand(self.child)} in ({', '.join(map(repr, self.values))})"


@dataclass(frozen=True, slots=True, eq=False)
class Call(Expr):
    """A function of one argument out of FUNCTIONS."""

    function: str
    child: Expr

    def _children(self) -> tuple[Expr, ...]:
        return (self.child,)

    def kind(self, schema: pa.Schema) -> Kind:
        argument, value, _ = FUNCTIONS[self.function]
        if self.child.kind(schema) != argument:
            msg = f"{self}: {self.child} is a {self.child.kind(schema)}, not a {argument}"
            raise RecipeError(msg)
        return value

    def to_arrow(self, schema: pa.Schema) -> pc.Expression:
        return FUNCTIONS[self.function][2](self.child.to_arrow(schema))

    def __str__(self) -> str:
        return f"{self.function}({self.child})"


def col(name: str) -> Column:
    """Return a column."""
    return Column(name)


def literal(value: object) -> Expr:
    """Return ``value`` as an expression; NaN and other objects are refused."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, float) and math.isnan(value):
        msg = "NaN is null here; compare with `is None` instead"
        raise RecipeError(msg)
    if isinstance(value, str | int | float | bool):
        return Constant(value)
    msg = f"{value!r} is not a string, number or boolean"
    raise RecipeError(msg)


def all_of(*conditions: Expr) -> Expr:
    """Return the conjunction of at least one condition."""
    joined = conditions[0]
    for condition in conditions[1:]:
        joined = joined & condition
    return joined


def check(expr: Expr, schema: pa.Schema) -> None:
    """Raise RecipeError unless ``expr`` is a condition over ``schema``."""
    if expr.kind(schema) != "boolean":
        msg = f"{expr} is a {expr.kind(schema)}, not a condition"
        raise RecipeError(msg)


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
                "project", acero.ProjectNodeOptions([expr.to_arrow(narrow.schema)], ["keep"])
            ),
        ]
    )
    return plan.to_table(use_threads=False)["keep"]


def _kind_of_type(kind: pa.DataType) -> Kind | None:
    if pa.types.is_dictionary(kind):
        return _kind_of_type(kind.value_type)
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "number"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string"
    return None


def _same_kind(expr: Expr, left: Expr, right: Expr, schema: pa.Schema) -> None:
    a, b = left.kind(schema), right.kind(schema)
    if a != b:
        msg = f"{expr}: {left} is a {a}, {right} is a {b}"
        raise RecipeError(msg)


def _fit(
    left: Expr,
    left_arrow: pc.Expression,
    right: Expr,
    right_arrow: pc.Expression,
    schema: pa.Schema,
) -> tuple[pc.Expression, pc.Expression]:
    """Cast a literal to its column's type, so that float32 0.9 >= 0.9 is true."""
    if isinstance(left, Constant) and isinstance(right, Column):
        right_arrow, left_arrow = _fit(right, right_arrow, left, left_arrow, schema)
    elif isinstance(left, Column) and isinstance(right, Constant):
        kind = schema.field(left.name).type
        if pa.types.is_floating(kind):
            right_arrow = pc.scalar(pa.scalar(float(right.value), pa.float64()).cast(kind))
        elif pa.types.is_integer(kind):
            wide = pa.float64() if isinstance(right.value, float) else _wide(kind, right.value)
            left_arrow = left_arrow.cast(wide)
            right_arrow = pc.scalar(pa.scalar(right.value, wide))
    return left_arrow, right_arrow


def _wide(kind: pa.DataType, value: Value) -> pa.DataType:
    if pa.types.is_uint64(kind):
        return pa.float64() if isinstance(value, int) and value < 0 else pa.uint64()
    return pa.int64()


def _operand(expr: Expr) -> str:
    return f"({expr})" if isinstance(expr, Logic | Compare | Arithmetic) else str(expr)

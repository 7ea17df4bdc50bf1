"""The nodes of an expression: how they combine, what they read, their types, how they print.

Arrow code for them is made in ``_compile.py``; the public names are in ``expr.py``.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import RecipeError
from winnow.filters import _arrow_types as types
from winnow.filters._arrow_types import Kind, Value

FUNCTIONS: dict[str, tuple[Kind, Kind, Callable[[Any], Any]]] = {
    "length": ("string", "number", pc.utf8_length),
    "lower": ("string", "string", pc.utf8_lower),
    "abs": ("number", "number", pc.abs),
    "strip": ("string", "string", pc.utf8_trim_whitespace),
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

    def arrow_type(self, schema: pa.Schema) -> pa.DataType:
        """Return the Arrow type that the expression is computed in."""
        return pa.bool_()

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
        kind = types.kind_of_type(schema.field(index).type)
        if kind is None:
            msg = f"column {self.name!r} is {schema.field(index).type}, which cannot be compared"
            raise RecipeError(msg)
        return kind

    def arrow_type(self, schema: pa.Schema) -> pa.DataType:
        return types.computed_type(schema.field(self.name).type)

    def __str__(self) -> str:
        plain = self.name.isidentifier() and self.name.isascii()
        if plain and not keyword.iskeyword(self.name) and self.name not in ("true", "false"):
            return self.name
        return f"col({self.name!r})"


@dataclass(frozen=True, slots=True, eq=False)
class Constant(Expr):
    """A literal; takes the type of the column it is compared with."""

    value: Value

    def kind(self, schema: pa.Schema) -> Kind:
        if isinstance(self.value, bool):
            return "boolean"
        return "string" if isinstance(self.value, str) else "number"

    def arrow_type(self, schema: pa.Schema) -> pa.DataType:
        return types.constant_type(self.value)

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
        kind = self.left.kind(schema)
        _require_kind(self, self.left, kind, self.right, schema)
        if kind == "boolean" and self.op not in ("==", "!="):
            msg = f"{self}: true and false have no order; use == or !="
            raise RecipeError(msg)
        return "boolean"

    def __str__(self) -> str:
        return f"{_inner(self.left)} {self.op} {_inner(self.right)}"


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

    def arrow_type(self, schema: pa.Schema) -> pa.DataType:
        return pa.float64()

    def __str__(self) -> str:
        return f"{_inner(self.left)} {self.op} {_inner(self.right)}"


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

    def __str__(self) -> str:
        return f"{_inner(self.child)} is None"


@dataclass(frozen=True, slots=True, eq=False)
class IsIn(Expr):
    """``child in (a, b, ...)``; null where the child is null."""

    child: Expr
    values: tuple[Value, ...]

    def _children(self) -> tuple[Expr, ...]:
        return (self.child,)

    def kind(self, schema: pa.Schema) -> Kind:
        kind = self.child.kind(schema)
        for value in self.values:
            _require_kind(self, self.child, kind, Constant(value), schema)
        return "boolean"

    def __str__(self) -> str:
        values = ", ".join(map(repr, self.values))
        return f"{_inner(self.child)} in ({values}{',' if len(self.values) == 1 else ''})"


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

    def arrow_type(self, schema: pa.Schema) -> pa.DataType:
        if FUNCTIONS[self.function][1] != "number":
            return self.child.arrow_type(schema)
        if self.function == "length":
            return pa.int64()
        kind = self.child.arrow_type(schema)
        signed = pa.types.is_integer(kind) and not pa.types.is_uint64(kind)
        return pa.int64() if signed else kind  # wide, because abs(-128) is no int8

    def __str__(self) -> str:
        return f"{self.function}({self.child})"


def literal(value: object) -> Expr:
    """Return ``value`` as an expression; NaN and other objects are refused."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, float) and math.isnan(value):
        msg = "NaN is null here; compare with `is None` instead"
        raise RecipeError(msg)
    if isinstance(value, int) and not types.INTEGER_RANGE[0] <= value <= types.INTEGER_RANGE[1]:
        msg = f"{value:.6g} is out of range; integers here have 64 bits"
        raise RecipeError(msg)
    if isinstance(value, str | int | float | bool):
        return Constant(value)
    msg = f"{value!r} is not a string, number or boolean"
    raise RecipeError(msg)


def _require_kind(expr: Expr, left: Expr, kind: Kind, right: Expr, schema: pa.Schema) -> None:
    other = right.kind(schema)
    if kind != other:
        msg = f"{expr}: {left} is a {kind}, {right} is a {other}"
        raise RecipeError(msg)


def _inner(expr: Expr) -> str:
    """Print an operand so that the whole can be parsed again."""
    return str(expr) if isinstance(expr, Column | Constant | Call) else f"({expr})"

"""Expressions over columns: predicates as data, printed, type-checked, compiled to Arrow.

    col("clip_score") >= 0.28
    (col("language") == "en") & (col("num_words") > 2)

Null means unknown, as in SQL; NaN is null. A row for which the whole expression is null is neither
kept nor refused by it: the recipe's ``on_null`` decides. The nodes and their types are in
``_nodes.py``, the Arrow code in ``_compile.py``.
"""

from __future__ import annotations

import pyarrow as pa

from winnow.contracts.errors import RecipeError
from winnow.filters._arrow_types import Kind, Value
from winnow.filters._compile import evaluate
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
    literal,
)

__all__ = [
    "FUNCTIONS",
    "Arithmetic",
    "Call",
    "Column",
    "Compare",
    "Constant",
    "Expr",
    "IsIn",
    "IsNull",
    "Kind",
    "Logic",
    "Not",
    "Value",
    "all_of",
    "check",
    "col",
    "evaluate",
    "literal",
]


def col(name: str) -> Column:
    """Return a column."""
    return Column(name)


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

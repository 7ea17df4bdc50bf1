"""What the report draws of a filter: the values it looks at, and the thresholds it puts on them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.filters import expr
from winnow.filters.expr import Column, Compare, Constant, Expr, IsIn, IsNull, Logic, Not
from winnow.filters.rules import BalancedRows, PriorityCover, RandomRows, TopFraction
from winnow.pipeline.draw import groups_of
from winnow.pipeline.plan import Plan
from winnow.pipeline.recipe import FilterEntry

Operator = Literal["==", "!=", "<", "<=", ">", ">="]

_FLIPPED: dict[str, Operator] = {
    "==": "==",
    "!=": "!=",
    "<": ">",
    "<=": ">=",
    ">": "<",
    ">=": "<=",
}
_NEGATED: dict[str, Operator] = {
    "==": "!=",
    "!=": "==",
    "<": ">=",
    "<=": ">",
    ">": "<=",
    ">=": "<",
}
_SIGNS = {"==": "=", "!=": "\u2260", "<": "<", "<=": "\u2264", ">": ">", ">=": "\u2265"}
_COMPARE: dict[str, Callable[[Any, float], Any]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """A threshold on a number: rows for which ``value op threshold`` pass it."""

    op: Operator
    threshold: float
    integer: bool = False

    @property
    def label(self) -> str:
        """The threshold as a person writes it."""
        return f"{_SIGNS[self.op]} {format_number(self.threshold)}"

    @property
    def edge(self) -> float:
        """Where the line is drawn: between two integers, where the values are integers."""
        if not self.integer or self.op in ("==", "!="):
            return self.threshold
        return self.threshold + (0.5 if self.op in ("<=", ">") else -0.5)

    def passes(self, values: np.ndarray) -> np.ndarray:
        """Return which values pass; NaN passes nothing."""
        return np.asarray(_COMPARE[self.op](values, self.threshold) & ~np.isnan(values), bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """A number that a filter looks at: drawn as a histogram."""

    label: str
    integer: bool
    cuts: tuple[Cut, ...]
    read: Callable[[pa.Table], pa.ChunkedArray]

    def values(self, table: pa.Table) -> np.ndarray:
        """Return the numbers as float64; null is NaN."""
        return np.asarray(self.read(table).cast(pa.float64(), safe=False).to_numpy(), np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """A text, a boolean or a presence that a filter looks at: drawn as bars of its top values.

    accepted: values that the filter asks for; ``negated``: it asks for any other; None: unknown.
    """

    label: str
    read: Callable[[pa.Table], pa.ChunkedArray]
    accepted: frozenset[str | None] | None = None
    negated: bool = False

    def values(self, table: pa.Table) -> pa.ChunkedArray:
        """Return the values as strings, nulls kept."""
        return self.read(table).cast(pa.string())

    def accepts(self, value: str | None) -> bool | None:
        """Whether a value is one that the filter asks for; None where that cannot be said."""
        if self.accepted is None or (value is None and None not in self.accepted):
            return None
        return (value in self.accepted) != self.negated


Panel = Measure | Category


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterView:
    """One filter of the funnel and what there is to draw of it."""

    index: int
    entry: FilterEntry
    summary: Mapping[str, Any]
    panels: tuple[Panel, ...]

    @property
    def measures(self) -> list[Measure]:
        """The numbers with a threshold."""
        return [p for p in self.panels if isinstance(p, Measure) and p.cuts]

    @property
    def is_cover(self) -> bool:
        """Whether its drops are shown as clusters of duplicates."""
        return isinstance(self.entry.rule, PriorityCover)


def make_views(plan: Plan, summary: Mapping[str, Any]) -> list[FilterView]:
    """Return the view of each filter, in funnel order."""
    views = []
    for index, entry in enumerate(plan.filters):
        found = summary["funnel"][index]
        panels = _panels(entry, str(found["rule"]), plan.schema)
        views.append(FilterView(index=index, entry=entry, summary=found, panels=tuple(panels)))
    return views


def format_number(value: float) -> str:
    """Return a number with few digits: 1,024 or 0.283 or 1.2e-05."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _panels(entry: FilterEntry, rule_text: str, schema: pa.Schema) -> list[Panel]:
    rule = entry.rule
    if isinstance(rule, TopFraction):
        kind = schema.field(rule.column).type
        threshold = _computed_threshold(rule, rule_text)
        cuts = () if threshold is None else (_cut(">=", threshold, kind),)
        return [_measure(expr.col(rule.column), schema, cuts)]
    if isinstance(rule, PriorityCover):
        return [_lengths(rule.neighbors)]
    if isinstance(rule, RandomRows):
        return []
    if isinstance(rule, BalancedRows):
        return [Category(label="group", read=functools.partial(groups_of, rule))]
    collector = _Collector(schema)
    collector.walk(rule, negated=False)
    return collector.panels()


def _computed_threshold(rule: TopFraction, text: str) -> float | None:
    """Read the threshold that the selection computed out of "column >= threshold (rule)"."""
    found = re.match(re.escape(f"{rule.column} >= ") + r"(\S+) \(", text)
    if found is None or found[1] == "None":
        return None
    return float(found[1])


class _Collector:
    """Walks an expression; comparisons of the same value share a panel."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._numbers: dict[str, tuple[Expr, list[Cut]]] = {}
        self._categories: dict[str, Category] = {}
        self._order: list[str] = []

    def panels(self) -> list[Panel]:
        """Return what was found, in the order of the text."""
        found: list[Panel] = []
        for label in dict.fromkeys(self._order):
            if label in self._numbers:
                value, cuts = self._numbers[label]
                found.append(_measure(value, self._schema, tuple(cuts)))
            if label in self._categories:
                found.append(self._categories[label])
        return found

    def walk(self, node: Expr, *, negated: bool) -> None:
        match node:
            case Logic(_, left, right):
                self.walk(left, negated=negated)
                self.walk(right, negated=negated)
            case Not(child):
                self.walk(child, negated=not negated)
            case Compare():
                self._compare(node, negated)
            case IsIn(child, values):
                self._category(child, frozenset(map(_text, values)), negated)
            case IsNull(child):
                self._presence(child, negated)
            case Constant():
                pass
            case _:
                self._category(node, frozenset({"true"}), negated)

    def _compare(self, node: Compare, negated: bool) -> None:
        left, right = node.left, node.right
        op = _FLIPPED[_FLIPPED[node.op]]
        if isinstance(left, Constant):
            left, right, op = right, left, _FLIPPED[op]
        op = _NEGATED[op] if negated else op
        if left.kind(self._schema) == "number":
            if not isinstance(right, Constant):
                left, right = left - right, Constant(0)
            assert isinstance(right, Constant)
            _, cuts = self._numbers.setdefault(str(left), (left, []))
            cuts.append(_cut(op, float(right.value), left.arrow_type(self._schema)))
            self._order.append(str(left))
        elif isinstance(right, Constant) and op in ("==", "!="):
            self._category(left, frozenset({_text(right.value)}), op == "!=")
        else:
            self._add(Category(label=str(node), read=_evaluator(node)))

    def _category(self, child: Expr, accepted: frozenset[str | None], negated: bool) -> None:
        self._add(
            Category(label=str(child), read=_evaluator(child), accepted=accepted, negated=negated)
        )

    def _presence(self, child: Expr, negated: bool) -> None:
        """A text (an error code) is drawn by its values, anything else as there or not there."""
        if isinstance(child, Column) and pa.types.is_string(self._schema.field(child.name).type):
            self._category(child, frozenset({None}), negated)
            return
        null = child.is_null()

        def read(table: pa.Table) -> pa.ChunkedArray:
            return pc.if_else(expr.evaluate(null, table), "null", "present")

        accepted = frozenset({"present" if negated else "null"})
        self._add(Category(label=str(child), read=read, accepted=accepted))

    def _add(self, category: Category) -> None:
        known = self._categories.get(category.label)
        if known is not None and (known.accepted, known.negated) != (
            category.accepted,
            category.negated,
        ):
            # The same text asked twice (a == "x" or a == "y"): no single set of accepted values.
            category = Category(label=category.label, read=category.read)
        self._categories[category.label] = category
        self._order.append(category.label)


def _measure(value: Expr, schema: pa.Schema, cuts: Sequence[Cut]) -> Measure:
    integer = pa.types.is_integer(value.arrow_type(schema))
    return Measure(label=str(value), integer=integer, cuts=tuple(cuts), read=_evaluator(value))


def _cut(op: Operator, threshold: float, kind: pa.DataType) -> Cut:
    """A float32 column is compared with the float32 that is nearest to the literal."""
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        threshold = float(np.float32(threshold))
    return Cut(op=op, threshold=threshold, integer=pa.types.is_integer(kind))


def _lengths(neighbors: str) -> Measure:
    def read(table: pa.Table) -> pa.ChunkedArray:
        return pc.list_value_length(table.column(neighbors))

    return Measure(label=f"number of {neighbors}", integer=True, cuts=(), read=read)


def _evaluator(value: Expr) -> Callable[[pa.Table], pa.ChunkedArray]:
    def read(table: pa.Table) -> pa.ChunkedArray:
        return expr.evaluate(value, table)

    return read


def _text(value: object) -> str:
    """Return a literal as Arrow's cast to string gives it."""
    return ("true" if value else "false") if isinstance(value, bool) else str(value)

"""Selection rules that need more than the row itself: a rank over the pool, a priority cover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from winnow.filters.expr import Expr

OTHERS = "*"
"""Stands for every group that a mapping does not name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TopFraction:
    """Keep rows whose ``column`` is at or above the value at descending rank min(int(n*f), n-1).

    n counts the rows of the pool with a value. ``over="unrepeated"`` ranks all rows of the source
    that are not marked ``repeated_row`` (DataComp: the pool, whatever other filters say);
    ``over="survivors"`` ranks what the filters before this one have kept. Ties are kept.
    """

    column: str
    fraction: float
    over: Literal["unrepeated", "survivors"] = "unrepeated"

    def columns(self) -> frozenset[str]:
        """Columns read."""
        return frozenset({self.column})

    def __str__(self) -> str:
        return f"{self.column} in the top {self.fraction:g} of {self.over} rows"


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorityCover:
    """Keep a row unless it neighbours a kept row that comes earlier in order of preference.

    ``neighbors``: a column of type list<fixed_size_binary(16)> with uids. ``prefer``: columns with
    their direction, most important first; nulls last; the uid breaks ties, smallest first.
    ``groups``: a column of type binary(16); rows of one group neighbour each other and share their
    neighbours, so that a list need name only the group's smallest uid.
    """

    neighbors: str
    prefer: tuple[tuple[str, Literal["largest", "smallest"]], ...]
    groups: str | None = None

    def columns(self) -> frozenset[str]:
        """Columns read."""
        group = () if self.groups is None else (self.groups,)
        return frozenset({self.neighbors, *group, *(name for name, _ in self.prefer)})

    def __str__(self) -> str:
        order = ", ".join(f"{way} {name}" for name, way in self.prefer)
        return f"no kept row of {self.neighbors} is preferred ({order or 'smallest uid'})"


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomRows:
    """Keep the rows that come first by hash(seed, uid) among those that the filters before keep.

    Exactly one of ``count`` (rows; all where there are fewer) and ``fraction`` (of those rows, to
    the nearest whole row) is given. Rows of one uid come one after the other, in source order.
    """

    count: int | None
    fraction: float | None
    seed: int

    def columns(self) -> frozenset[str]:
        """Columns read: only the uid, which is always there."""
        return frozenset()

    def num_kept(self, num_rows: int) -> int:
        """Return how many of ``num_rows`` rows are kept."""
        if self.count is not None:
            return min(self.count, num_rows)
        assert self.fraction is not None
        return round(num_rows * self.fraction)

    def __str__(self) -> str:
        size = f"{self.count:,}" if self.count is not None else f"{self.fraction:g} of the"
        return f"{size} remaining rows at random, seed {self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancedRows:
    """Keep so many rows of each group, those that come first by hash(seed, uid) among the rows of
    the group that the filters before keep; see the filter ``balanced_rows``.

    by: columns.  present: name and condition, by turns.  caps, weights: group and number, sorted;
    exactly one of them is given.
    """

    by: tuple[str, ...]
    present: tuple[tuple[str, Expr], ...]
    caps: tuple[tuple[str, int], ...] | None
    weights: tuple[tuple[str, float], ...] | None
    total: int | None
    seed: int

    def columns(self) -> frozenset[str]:
        """Columns read."""
        found = frozenset(self.by)
        return found.union(*(condition.columns() for _, condition in self.present))

    def num_kept(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return how many rows of each group are kept, given how many there are."""
        if self.caps is not None:
            caps = dict(self.caps)
            other = caps.get(OTHERS)
            found = ((group, caps.get(group, other)) for group in counts)
            return {g: counts[g] if n is None else min(n, counts[g]) for g, n in found}
        weights = {g: Fraction(w) for g, w in self.weights or ()}
        other_weight = weights.get(OTHERS, Fraction(0))
        shares = {group: weights.get(group, other_weight) for group in counts}
        if self.total is not None:
            wanted = _shared_out(self.total, shares)
        else:
            some = [g for g, weight in shares.items() if weight and counts[g]]
            unit = min((counts[g] / shares[g] for g in some), default=Fraction(0))
            wanted = {group: int(weight * unit) for group, weight in shares.items()}
        return {group: min(wanted[group], count) for group, count in counts.items()}

    def __str__(self) -> str:
        names = [*self.by, *(["/".join(n for n, _ in self.present)] if self.present else [])]
        groups = " and ".join(names)
        if self.caps is not None:
            some = dict(self.caps)
            numbers = ", ".join(f"{g} {n:,}" for g, n in some.items())
            what = f"{some[OTHERS]:,} rows" if list(some) == [OTHERS] else f"({numbers}) rows"
            return f"at most {what} of each {groups}, seed {self.seed}"
        numbers = ", ".join(f"{g} {w:g}" for g, w in self.weights or ())
        size = "as the scarcest allows" if self.total is None else f"{self.total:,} in all"
        return f"rows of each {groups} by weight ({numbers}), {size}, seed {self.seed}"


def _shared_out(total: int, shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Divide by weight with the largest remainder; equal remainders by name (Hamilton's method)."""
    whole = sum(shares.values()) or Fraction(1)
    exact = {group: weight * total / whole for group, weight in shares.items()}
    found = {group: int(value) for group, value in exact.items()}
    left = total - sum(found.values()) if any(shares.values()) else 0
    for group in sorted(exact, key=lambda g: (found[g] - exact[g], g))[:left]:
        found[group] += 1
    return found


Rule = Expr | TopFraction | PriorityCover | RandomRows | BalancedRows
"""What a filter factory returns."""

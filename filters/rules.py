"""Selection rules that need more than the row itself: a rank over the pool, a priority cover."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from winnow.filters.expr import Expr


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


Rule = Expr | TopFraction | PriorityCover | RandomRows
"""What a filter factory returns."""

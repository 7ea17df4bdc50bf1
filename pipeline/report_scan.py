"""Two streams over a selection's shards: what the report keeps of them does not grow with rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.identity import stable_hash64
from winnow.pipeline.arrow_files import from_file
from winnow.pipeline.columns import ShardReader
from winnow.pipeline.report_bins import Bins, Range
from winnow.pipeline.report_picks import ClusterSample, Picks, mix, uid_words
from winnow.pipeline.report_views import Category, FilterView, Measure
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.work import State

SHEET_ROWS = 8
DROPPED_ROWS = 16
KEPT_ROWS = 32
CLUSTER_ROWS = 5
MAX_VALUES = 5000
"""Different values of one text column that are counted; beyond, the rarer half is forgotten."""
KEPT, DROPPED_ELSEWHERE, DROPPED_HERE = 0, 1, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRows:
    """The rows of one shard: columns, and per row the number of the filter that dropped it."""

    number: int
    table: pa.Table
    reason: np.ndarray
    """int: index of the filter; the number of filters where the row was kept."""
    duplicate_of: pa.Array
    hashes: np.ndarray
    """uint64 per row: a seeded hash of the uid, which puts rows in a random order."""


@dataclass(slots=True)
class ValueCounts:
    """Rows per value of a category, by what became of them: [kept, elsewhere, here].

    asked: values that the filter names; they are never forgotten.
    """

    asked: frozenset[str | None] = frozenset()
    counts: dict[str | None, list[int]] = field(default_factory=dict)
    forgot: bool = False

    def add(self, values: pa.ChunkedArray, fate: np.ndarray) -> None:
        """Count the values of one shard."""
        coded = values.combine_chunks().dictionary_encode(null_encoding="encode")
        names = coded.dictionary.to_pylist()
        flat = np.bincount(np.asarray(coded.indices) * 3 + fate, minlength=3 * len(names))
        table = flat.reshape(-1, 3)
        top: Sequence[int] = range(len(names))
        if len(names) > MAX_VALUES:
            self.forgot = True
            asked = [i for i, name in enumerate(names) if name in self.asked or name is None]
            top = [*asked, *np.argsort(-table.sum(axis=1), kind="stable")[: MAX_VALUES // 2]]
        for index in dict.fromkeys(top):
            here, known = table[index].tolist(), self.counts.get(names[index], (0, 0, 0))
            self.counts[names[index]] = [a + b for a, b in zip(here, known, strict=True)]
        if len(self.counts) > MAX_VALUES:
            self._forget()

    def _forget(self) -> None:
        self.forgot = True
        ordered = sorted(self.counts, key=lambda name: -sum(self.counts[name]))
        keep = {*ordered[: MAX_VALUES // 2], *self.asked, None}
        self.counts = {name: n for name, n in self.counts.items() if name in keep}


@dataclass(slots=True)
class PanelData:
    """What was seen of one panel."""

    bins: Bins | None = None
    values: ValueCounts | None = None


@dataclass(slots=True)
class Sheets:
    """Rows to show of one filter."""

    below: list[tuple[Measure, int, Picks]] = field(default_factory=list)
    """Per cut: measure, index of the cut, dropped rows nearest to it."""
    above: list[Picks] = field(default_factory=list)
    """Per cut: rows that it let pass nearest to it."""
    dropped: Picks = field(default_factory=lambda: Picks(DROPPED_ROWS))


@dataclass(slots=True)
class Findings:
    """Everything that the report shows of the rows."""

    panels: dict[tuple[int, int], PanelData] = field(default_factory=dict)
    sheets: list[Sheets] = field(default_factory=list)
    kept: Picks = field(default_factory=lambda: Picks(KEPT_ROWS))
    clusters: ClusterSample = field(default_factory=lambda: ClusterSample(CLUSTER_ROWS))
    errors: dict[str, Counter[str]] = field(default_factory=dict)
    """Error column -> code -> rows."""


class Scan:
    """Reads a selection's columns shard by shard."""

    def __init__(
        self, storage: Storage, state: State, summary: Mapping[str, Any], views: list[FilterView]
    ) -> None:
        self._storage, self._state, self._views = storage, state, views
        self._selection = str(summary["selection"])
        selected = set(summary["shards"])
        self.shards: tuple[Shard, ...] = tuple(s for s in state.shards if s.id in selected)
        self._keys = pa.array([v.entry.key for v in views], pa.string())
        self._seed = stable_hash64(state.plan.recipe.seed, "report")

    def findings(self) -> Findings:
        """Stream twice: ranges, errors and clusters first, then histograms and rows to show."""
        found = Findings(sheets=[_sheets(view) for view in self._views])
        found.errors = {s.error: Counter() for s in self._state.sets.values() if s.error}
        ranges = {at: Range(m, len(self.shards)) for at, m in self._measures()}
        for rows in self._stream([*self._rule_columns(), *found.errors]):
            for at, measure in self._measures():
                ranges[at].add(measure.values(rows.table), rows.hashes)
            for name, counter in found.errors.items():
                _count_codes(counter, rows.table.column(name))
            found.clusters.add(rows.number, rows.duplicate_of)
        for at, _ in self._measures():
            found.panels[at] = PanelData(bins=Bins(ranges[at].axis()))
        for view in self._views:
            for place, panel in enumerate(view.panels):
                if isinstance(panel, Category):
                    found.panels[view.index, place] = PanelData(
                        values=ValueCounts(panel.accepted or frozenset())
                    )
        found.clusters.choose()
        for rows in self._stream(self._rule_columns()):
            self._fill(rows, found)
        return found

    def reader(self, shard: Shard) -> ShardReader:
        """Return a reader of all columns of a shard."""
        sets = tuple(self._state.sets.values())
        patches = self._state.all_patches(shard.id)
        return ShardReader(self._storage, sets, shard, patches)

    def ledger(self, shard: Shard, names: Sequence[str]) -> pa.Table:
        """Return columns of a shard's ledger."""
        file = self._storage.parquet(f"ledger/{self._selection}/{shard.id}.parquet")
        return from_file(file.read(columns=list(names), use_threads=False))

    def rule_columns(self, view: FilterView) -> list[str]:
        """Return the columns that a filter reads."""
        return sorted(view.entry.rule.columns() - {"uid"})

    def _rule_columns(self) -> list[str]:
        return sorted({n for v in self._views for n in self.rule_columns(v)})

    def _measures(self) -> Iterator[tuple[tuple[int, int], Measure]]:
        for view in self._views:
            for place, panel in enumerate(view.panels):
                if isinstance(panel, Measure):
                    yield (view.index, place), panel

    def _stream(self, names: Iterable[str]) -> Iterator[ShardRows]:
        wanted = list(dict.fromkeys(names))
        for number, shard in enumerate(self.shards):
            table = self.reader(shard).read(wanted)
            ledger = self.ledger(shard, ["filter", "duplicate_of"])
            reason = pc.index_in(ledger.column("filter"), value_set=self._keys)
            yield ShardRows(
                number=number,
                table=table,
                reason=pc.fill_null(reason, len(self._keys)).to_numpy().astype(np.int64),
                duplicate_of=ledger.column("duplicate_of").combine_chunks(),
                hashes=mix(uid_words(table.column("uid"))[:, 0], self._seed),
            )

    def _fill(self, rows: ShardRows, found: Findings) -> None:
        num_filters = len(self._views)
        kept = rows.reason == num_filters
        found.kept.add(rows.number, np.flatnonzero(kept), rows.hashes[kept])
        found.clusters.find_kept(rows.number, rows.table.column("uid"), kept)
        for view in self._views:
            here = rows.reason == view.index
            fate = np.where(kept, KEPT, np.where(here, DROPPED_HERE, DROPPED_ELSEWHERE))
            sheets = found.sheets[view.index]
            sheets.dropped.add(rows.number, np.flatnonzero(here), rows.hashes[here])
            cut_number = 0
            for place, panel in enumerate(view.panels):
                data = found.panels[view.index, place]
                if isinstance(panel, Category):
                    assert data.values is not None
                    data.values.add(panel.values(rows.table), fate)
                    continue
                assert data.bins is not None
                values = panel.values(rows.table)
                data.bins.add(values, fate)
                cut_number = _offer(rows, view.index, panel, values, sheets, cut_number)


def _offer(
    rows: ShardRows, index: int, measure: Measure, values: np.ndarray, sheets: Sheets, first: int
) -> int:
    """Offer rows near each cut of a measure to its sheets; return the number of the next cut."""
    for offset, cut in enumerate(measure.cuts):
        passes = cut.passes(values)
        distance = np.abs(values - cut.threshold)
        refused = (rows.reason == index) & ~passes & ~np.isnan(values)
        let_through = (rows.reason > index) & passes
        for picks, mask in (
            (sheets.below[first + offset][2], refused),
            (sheets.above[first + offset], let_through),
        ):
            at = np.flatnonzero(mask)
            picks.add(rows.number, at, rows.hashes[at], distance[at])
    return first + len(measure.cuts)


def _sheets(view: FilterView) -> Sheets:
    sheets = Sheets()
    for panel in view.panels:
        if isinstance(panel, Measure):
            for number in range(len(panel.cuts)):
                sheets.below.append((panel, number, Picks(SHEET_ROWS)))
                sheets.above.append(Picks(SHEET_ROWS))
    return sheets


def _count_codes(counter: Counter[str], column: pa.ChunkedArray) -> None:
    for item in pc.value_counts(column.drop_null()).to_pylist():
        counter[item["values"]] += item["counts"]

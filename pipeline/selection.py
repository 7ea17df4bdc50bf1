"""Selection: filters over annotations, the reason for every row, a ledger that balances."""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import ShardError
from winnow.filters import expr
from winnow.filters.expr import Expr
from winnow.filters.rules import BalancedRows, PriorityCover, RandomRows, TopFraction
from winnow.pipeline.arrow_files import UID, ShardWriter
from winnow.pipeline.columns import ColumnSet, Patches, ShardReader
from winnow.pipeline.draw import BalancedDraw, RandomDraw
from winnow.pipeline.fingerprint import digest
from winnow.pipeline.ledger_values import json_objects
from winnow.pipeline.recipe import FilterEntry
from winnow.pipeline.shards import Shard
from winnow.pipeline.storage import Storage
from winnow.pipeline.units import Unit, UnitResult, WorkerContext
from winnow.pipeline.work import State

if TYPE_CHECKING:
    import duckdb

SUMMARY = "_ledger.json"
REPEATED = "repeated_row"
MEMORY_LIMIT = "1GB"
WRITERS = 4
"""Ledger files that are written at once."""

LEDGER = pa.schema(
    [
        UID,
        pa.field("outcome", pa.string()),
        pa.field("filter", pa.string()),
        pa.field("value", pa.string()),
        pa.field("threshold", pa.string()),
        pa.field("duplicate_of", pa.binary(16)),
    ]
)
"""One row per row that was read: kept or dropped, by which filter, on what (JSON), against what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectUnit(Unit):
    """Applies the filters to all shards and commits the ledger, its summary last."""

    storage: Storage
    selection: str
    filters: tuple[FilterEntry, ...]
    sets: tuple[ColumnSet, ...]
    shards: tuple[Shard, ...]
    patches: Mapping[str, Patches]
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"select {self.selection}"

    def run(self, context: WorkerContext) -> UnitResult:
        """Rank thresholds first, then the cover, then one ledger file per shard."""
        with tempfile.TemporaryDirectory(prefix="select-", dir=context.scratch) as folder:
            summary = _Selector(self, Path(folder)).run(context)
        text = json.dumps(summary, indent=1, sort_keys=True)
        self.storage.put(f"ledger/{self.selection}/{SUMMARY}", text.encode())
        return UnitResult(rows=summary["rows"], extra=summary)


def select_unit(state: State) -> SelectUnit:
    """Return the unit that applies a plan's filters to the present annotations."""
    names = {n for f in state.plan.filters for n in f.rule.columns()}
    if REPEATED in state.plan.origins:
        names.add(REPEATED)
    # What gates read decides too, on which rows a stage's columns are null.
    writers = state.closure(state.plan.origins[n] for n in names if n != "uid")
    patches = {s.id: state.all_patches(s.id) for s in state.shards}
    used = {w: state.fingerprints[w] for w in writers}
    gates = {w: str(state.sets[w].when) for w in writers}
    rules = [[f.key, str(f.rule), repr(f.rule), f.on_null] for f in state.plan.filters]
    pool = [[s.id, {w: p for w, p in patches[s.id].items() if w in used}] for s in state.shards]
    return SelectUnit(
        storage=state.storage,
        selection=digest([rules, used, gates, sorted(map(json.dumps, pool))]),
        filters=state.plan.filters,
        sets=tuple(state.sets[w] for w in writers),
        shards=state.shards,
        patches=patches,
        record={"recipe": state.plan.recipe.name, "fingerprints": used},
    )


@dataclass(slots=True)
class _Masks:
    """Which rows of a shard each filter refuses, and which it found null."""

    refused: list[np.ndarray]
    null: list[np.ndarray]

    def survivors(self, before: int, num_rows: int) -> np.ndarray:
        """Rows that none of the first ``before`` filters refuses."""
        alive = np.ones(num_rows, bool)
        for refused in self.refused[:before]:
            alive &= ~refused
        return alive


class _Selector:
    def __init__(self, unit: SelectUnit, scratch: Path) -> None:
        self._unit, self._scratch = unit, scratch
        self._names = sorted({n for f in unit.filters for n in f.rule.columns() if n != "uid"})
        known = {n for s in unit.sets for n in s.schema.names}
        self._has_repeats = REPEATED in known
        self._thresholds: dict[int, int | float | None] = {}
        self._draws: dict[int, RandomDraw | BalancedDraw] = {}
        self._cover: Any = None
        self._cover_index: int | None = None

    def run(self, context: WorkerContext) -> dict[str, Any]:
        for index, entry in enumerate(self._unit.filters):
            if isinstance(entry.rule, TopFraction):
                self._thresholds[index] = self._rank(index, entry.rule)
            elif isinstance(entry.rule, RandomRows | BalancedRows):
                self._draws[index] = self._drawn(index, entry.rule)
            elif isinstance(entry.rule, PriorityCover):
                self._cover_index = index
                self._cover = self._covered(index, entry.rule)
        funnel = [
            {"filter": f.key, "rule": self._threshold_text(i), "on_null": f.on_null}
            | {"dropped": 0, "null": 0, "only": 0}
            for i, f in enumerate(self._unit.filters)
        ]
        kept = rows = 0
        kept_per_shard: list[int] = []
        with ThreadPoolExecutor(WRITERS) as writers:
            writing: deque[Future[None]] = deque()
            for number, (shard, table) in enumerate(self._tables()):
                ledger, alive = self._ledger(number, shard, table, funnel)
                # Flushing a file to the disk takes longer than making it.
                writing.append(writers.submit(self._write, shard, ledger))
                if len(writing) > WRITERS:
                    writing.popleft().result()
                kept, rows = kept + int(alive.sum()), rows + shard.num_rows
                kept_per_shard.append(int(alive.sum()))
                context.progress(shard.num_rows)
            for write in writing:
                write.result()
        return self._summary(rows, kept, funnel) | {"kept_per_shard": kept_per_shard}

    def _summary(self, rows: int, kept: int, funnel: list[dict[str, Any]]) -> dict[str, Any]:
        dropped = sum(f["dropped"] for f in funnel)
        left = rows
        for entry in funnel:
            left -= entry["dropped"]
            entry["kept"] = left
        if rows != kept + dropped or left != kept:
            msg = f"the ledger does not balance: {rows} read, {kept} kept, {dropped} dropped"
            raise ShardError(msg, retryable=False)
        return {
            "selection": self._unit.selection,
            "rows": rows,
            "kept": kept,
            "dropped": dropped,
            "funnel": funnel,
            "shards": [s.id for s in self._unit.shards],
            **self._unit.record,
        }

    def _tables(self) -> Iterator[tuple[Shard, pa.Table]]:
        names = [*self._names]
        if self._has_repeats and REPEATED not in names:
            names.append(REPEATED)
        for shard in self._unit.shards:
            patches = self._unit.patches.get(shard.id, {})
            reader = ShardReader(self._unit.storage, self._unit.sets, shard, patches)
            yield shard, reader.read(names)

    def _masks(self, number: int, table: pa.Table, stop: int) -> _Masks:
        """Evaluate the first ``stop`` filters; a cover is not evaluated here."""
        masks = _Masks([], [])
        for index, entry in enumerate(self._unit.filters[:stop]):
            if isinstance(entry.rule, Expr):
                values = expr.evaluate(entry.rule, table)
            elif isinstance(entry.rule, TopFraction):
                values = self._in_top(index, entry.rule, table)
            elif isinstance(entry.rule, RandomRows | BalancedRows):
                masks.refused.append(~self._draws[index].kept(number, table))
                masks.null.append(np.zeros(table.num_rows, bool))
                continue
            else:
                masks.refused.append(np.zeros(table.num_rows, bool))
                masks.null.append(np.zeros(table.num_rows, bool))
                continue
            null = np.asarray(values.is_null().to_numpy(), bool)
            true = np.asarray(pc.fill_null(values, False).to_numpy(), bool)
            masks.null.append(null)
            masks.refused.append(~true & ~null if entry.on_null == "keep" else ~true)
        return masks

    def _in_top(self, index: int, rule: TopFraction, table: pa.Table) -> pa.ChunkedArray:
        threshold = self._thresholds[index]
        if threshold is None:
            return pa.chunked_array([pa.nulls(table.num_rows, pa.bool_())])
        return expr.evaluate(expr.col(rule.column) >= threshold, table)

    def _rank(self, index: int, rule: TopFraction) -> int | float | None:
        """Return the value at descending rank min(int(n * f), n - 1); None without values.

        Integers are ranked as what they are: above 2**53 a float stands for several of them.
        """
        schemas = (s.schema for s in self._unit.sets)
        kind = next(s.field(rule.column).type for s in schemas if rule.column in s.names)
        whole = {"uint64": "UBIGINT"}.get(str(kind), "BIGINT") if pa.types.is_integer(kind) else ""
        database = self._database()
        database.execute(f"CREATE TABLE scores (value {whole or 'DOUBLE'})")
        for number, (_, table) in enumerate(self._tables()):
            column = table.column(rule.column)
            if rule.over == "survivors":
                column = column.filter(pa.array(self._survivors(number, table, index)))
            elif self._has_repeats:
                column = column.filter(pc.invert(pc.fill_null(table.column(REPEATED), False)))
            values = column.drop_null()
            if not whole:
                floats = np.asarray(values.to_numpy(), np.float64)
                values = pa.array(floats[~np.isnan(floats)])
            found = pa.table({"value": values})
            database.register("found", found)
            database.execute("INSERT INTO scores SELECT value FROM found")
            database.unregister("found")
        row = database.execute("SELECT count(*) FROM scores").fetchone()
        count = int(row[0]) if row else 0
        if count == 0:
            database.close()
            return None
        rank = min(int(count * rule.fraction), count - 1)
        query = f"SELECT value FROM scores ORDER BY value DESC LIMIT 1 OFFSET {rank}"  # noqa: S608
        row = database.execute(query).fetchone()
        database.close()
        assert row is not None
        return int(row[0]) if whole else float(row[0])

    def _covered(self, index: int, rule: PriorityCover) -> Any:
        from winnow.pipeline import cover

        state = cover.PriorityCoverState(rule, self._scratch)
        for number, (_, table) in enumerate(self._tables()):
            state.accumulate(number, table, self._survivors(number, table, index))
        return state

    def _drawn(self, index: int, rule: RandomRows | BalancedRows) -> RandomDraw | BalancedDraw:
        draw: RandomDraw | BalancedDraw
        if isinstance(rule, BalancedRows):
            draw = BalancedDraw(rule, self._scratch)
        else:
            draw = RandomDraw(rule, self._scratch)
        for number, (_, table) in enumerate(self._tables()):
            draw.accumulate(number, table, self._survivors(number, table, index))
        draw.finish()
        return draw

    def _survivors(self, number: int, table: pa.Table, index: int) -> np.ndarray:
        alive = self._masks(number, table, index).survivors(index, table.num_rows)
        if self._cover is not None:  # it comes before ``index``, or it would not be known yet
            alive[self._cover.result(number)[0]] = False
        return alive

    def _ledger(
        self, number: int, shard: Shard, table: pa.Table, funnel: list[dict[str, Any]]
    ) -> tuple[pa.Table, np.ndarray]:
        masks = self._masks(number, table, len(self._unit.filters))
        duplicate_of: dict[int, bytes] = {}
        if self._cover is not None and self._cover_index is not None:
            rows, originals = self._cover.result(number)
            masks.refused[self._cover_index][rows] = True
            duplicate_of = dict(zip(rows.tolist(), originals, strict=True))
        reason = np.full(table.num_rows, -1)
        count = np.zeros(table.num_rows, np.int32)
        for index, refused in enumerate(masks.refused):
            reason[refused & (reason < 0)] = index
            count += refused
        for index, entry in enumerate(funnel):
            entry["dropped"] += int((reason == index).sum())
            entry["null"] += int(masks.null[index].sum())
            entry["only"] += int((masks.refused[index] & (count == 1)).sum())
        return self._ledger_table(table, reason, duplicate_of), reason < 0

    def _ledger_table(
        self, table: pa.Table, reason: np.ndarray, duplicate_of: Mapping[int, bytes]
    ) -> pa.Table:
        names = [f.key for f in self._unit.filters]
        index = pa.array(reason, pa.int32(), mask=reason < 0)
        values = [pa.nulls(1, pa.string())]
        place, end = np.zeros(table.num_rows, np.int64), 1
        for number, entry in enumerate(self._unit.filters):
            at = np.flatnonzero(reason == number)
            if len(at):
                draw = self._draws.get(number)
                found = pa.array(draw.reasons(table.take(pa.array(at)))) if draw else None
                values.append(_as_json(table, entry, at) if found is None else found)
                place[at] = np.arange(end, end + len(at))
                end += len(at)
        originals = pa.nulls(len(reason), pa.binary(16))
        if duplicate_of:
            originals = pa.array(map(duplicate_of.get, range(len(reason))), pa.binary(16))
        return pa.table(
            [
                table.column("uid"),
                pc.if_else(pa.array(reason < 0), "kept", "dropped"),
                pc.take(pa.array(names or [""], pa.string()), index),
                pc.take(pa.concat_arrays(values), pa.array(place)),
                pc.take(
                    pa.array([self._threshold_text(i) for i in range(len(names))] or [""]), index
                ),
                originals,
            ],
            schema=LEDGER,
        )

    def _threshold_text(self, index: int) -> str:
        rule = self._unit.filters[index].rule
        if isinstance(rule, TopFraction):
            threshold = self._thresholds.get(index)
            if threshold is not None and float(threshold) == threshold:
                threshold = float(threshold)
            return f"{rule.column} >= {threshold} ({rule})"
        if isinstance(rule, RandomRows | BalancedRows):
            return self._draws[index].threshold()
        return str(rule)

    def _write(self, shard: Shard, ledger: pa.Table) -> None:
        name = f"ledger/{self._unit.selection}/{shard.id}.parquet"
        with self._unit.storage.create(name) as commit:
            writer = ShardWriter(commit.file, LEDGER)
            writer.write(ledger)
            writer.close()

    def _database(self) -> duckdb.DuckDBPyConnection:
        import duckdb

        return duckdb.connect(
            str(self._scratch / f"rank-{len(self._thresholds)}.duckdb"),
            config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(self._scratch)},
        )


def _as_json(table: pa.Table, entry: FilterEntry, at: np.ndarray) -> pa.Array:
    """Return the values that a rule looked at, as JSON objects."""
    if isinstance(entry.rule, PriorityCover):
        names = [name for name, _ in entry.rule.prefer]
    else:
        names = sorted(entry.rule.columns())
    return json_objects(table, names, at)

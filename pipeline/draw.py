"""An exact random subset: the rows whose hashes come first, as many as were asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from winnow.contracts.errors import ShardError
from winnow.contracts.identity import stable_hashes64
from winnow.filters import expr
from winnow.filters.rules import BalancedRows, RandomRows

MEMORY_LIMIT = "1GB"
MAX_GROUPS = 100_000
"""Groups of one balance: their cuts are held in memory."""
SHOWN_GROUPS = 20
_ROW_BITS = 32
_ALL = np.iinfo(np.int64).max
Flags = npt.NDArray[np.bool_]


class RandomDraw:
    """Collects the survivors of every shard, then says which rows come before the cut.

    Rows are ordered by hash(seed, uid), rows of one uid by source order, so the subset has exactly
    the asked size. Cost: 16 bytes a survivor, in a DuckDB table that spills to ``scratch`` beyond
    ``memory_limit``; 1 us a row for each hash.
    """

    def __init__(
        self, rule: RandomRows, scratch: Path, *, memory_limit: str = MEMORY_LIMIT
    ) -> None:
        self._rule = rule
        self._draws = _Draws({"hash": "UBIGINT", "position": "BIGINT"}, scratch, memory_limit)
        self._last: tuple[int, int] | None = (-1, -1)

    def accumulate(self, shard: int, table: pa.Table, alive: Flags) -> None:
        """Add a shard: ``uid`` of all its rows, and which of them survive."""
        rows = np.flatnonzero(alive)
        hashes = hashes_of(self._rule, table.select(["uid"]).take(pa.array(rows)))
        self._draws.insert(hash=hashes, position=_positions(shard, rows))

    def finish(self) -> None:
        """Find the last row of the subset; to be called once all shards were added."""
        database = self._draws.database
        row = database.execute("SELECT count(*) FROM draws").fetchone()
        num_rows = int(row[0]) if row else 0
        wanted = self._rule.num_kept(num_rows)
        if wanted >= num_rows:
            self._last = None
        elif wanted > 0:
            query = f"SELECT hash, position FROM draws ORDER BY ALL LIMIT 1 OFFSET {wanted - 1}"  # noqa: S608
            last = database.execute(query).fetchone()
            assert last is not None
            self._last = (int(last[0]), int(last[1]))
        database.close()

    def kept(self, shard: int, table: pa.Table) -> Flags:
        """Return which rows of a shard come before the cut, survivors or not."""
        if self._last is None:
            return np.ones(table.num_rows, bool)
        last_hash, last_position = self._last
        if last_hash < 0:
            return np.zeros(table.num_rows, bool)
        return _before(self._rule, shard, table, np.uint64(last_hash), last_position)

    def threshold(self) -> str:
        """Return the rule with the cut, for the ledger."""
        if self._last is None:
            return str(self._rule)
        return f"draw <= {as_share(self._last[0])} ({self._rule})"

    def reasons(self, table: pa.Table) -> list[str]:
        """Return what the ledger says of rows that were dropped, as JSON objects."""
        hashes = hashes_of(self._rule, table).tolist()
        return [json.dumps({"draw": as_share(value)}) for value in hashes]


class BalancedDraw:
    """The same for groups: collects the survivors of every shard, then says which rows of each
    group come before its cut.

    Cost: 20 bytes a survivor, in a DuckDB table that spills to ``scratch`` beyond
    ``memory_limit``; a few hundred bytes a group.
    Fails: ShardError, not retryable, where there are more than MAX_GROUPS groups.
    """

    def __init__(
        self, rule: BalancedRows, scratch: Path, *, memory_limit: str = MEMORY_LIMIT
    ) -> None:
        self._rule = rule
        columns = {"g": "INTEGER", "hash": "UBIGINT", "position": "BIGINT"}
        self._draws = _Draws(columns, scratch, memory_limit)
        self._numbers: dict[str, int] = {}
        self._counts: dict[str, int] = {}
        self._kept: dict[str, int] = {}
        self._last_hash = np.empty(0, np.uint64)
        self._last_position = np.empty(0, np.int64)

    def accumulate(self, shard: int, table: pa.Table, alive: Flags) -> None:
        """Add a shard: ``uid`` and the rule's columns of all rows, and which of them survive."""
        rows = np.flatnonzero(alive)
        table = table.take(pa.array(rows))
        groups = groups_of(self._rule, table)
        for item in pc.value_counts(groups).to_pylist():
            name = item["values"]
            self._numbers.setdefault(name, len(self._numbers))
            self._counts[name] = self._counts.get(name, 0) + item["counts"]
        if len(self._numbers) > MAX_GROUPS:
            msg = f"more than {MAX_GROUPS:,} groups: {self._rule}; balance by fewer values"
            raise ShardError(msg, retryable=False)
        self._draws.insert(
            g=self._numbers_of(groups),
            hash=hashes_of(self._rule, table),
            position=_positions(shard, rows),
        )

    def finish(self) -> None:
        """Find the last row of each group; to be called once all shards were added."""
        # By name: shards may come in any order, and what is equal must not depend on it.
        counts = dict(sorted(self._counts.items()))
        self._kept = self._rule.num_kept(counts)
        # Beside the groups there is one more, of rows that no survivor shares a group with.
        self._last_hash = np.full(len(self._numbers) + 1, np.iinfo(np.uint64).max, np.uint64)
        self._last_position = np.full(len(self._numbers) + 1, _ALL, np.int64)
        cut = {g: n for g, n in self._kept.items() if n < counts[g]}
        for name in cut:
            self._last_hash[self._numbers[name]] = 0
            self._last_position[self._numbers[name]] = -1
        wanted = pa.table(
            {
                "g": pa.array([self._numbers[g] for g in cut], pa.int32()),
                "n": pa.array(cut.values(), pa.int64()),
            }
        )
        database = self._draws.database
        database.register("wanted", wanted)
        lasts = database.execute(
            "SELECT g, hash, position FROM (SELECT g, hash, position, row_number() OVER "
            "(PARTITION BY g ORDER BY hash, position) AS place FROM draws "
            "WHERE g IN (SELECT g FROM wanted)) JOIN wanted USING (g) WHERE place = n"
        ).fetchall()
        for number, last_hash, last_position in lasts:
            self._last_hash[number], self._last_position[number] = last_hash, last_position
        database.close()

    def kept(self, shard: int, table: pa.Table) -> Flags:
        """Return which rows of a shard come before their group's cut, survivors or not."""
        numbers = self._numbers_of(groups_of(self._rule, table))
        last, last_position = self._last_hash[numbers], self._last_position[numbers]
        return _before(self._rule, shard, table, last, last_position)

    def threshold(self) -> str:
        """Return the rule with the numbers of its groups, the largest first."""
        largest = sorted(self._counts, key=lambda g: (-self._counts[g], g))
        shown = [f"{g} {self._kept[g]:,} of {self._counts[g]:,}" for g in largest[:SHOWN_GROUPS]]
        if len(largest) > SHOWN_GROUPS:
            shown.append(f"{len(largest) - SHOWN_GROUPS:,} other groups")
        return f"{', '.join(shown)} ({self._rule})" if shown else str(self._rule)

    def reasons(self, table: pa.Table) -> list[str]:
        """Return what the ledger says of rows that were dropped, as JSON objects."""
        groups = groups_of(self._rule, table).to_pylist()
        hashes = hashes_of(self._rule, table).tolist()
        sizes = {g: {"group": g, "kept": self._kept[g], "of": self._counts[g]} for g in set(groups)}
        return [
            json.dumps(sizes[group] | {"draw": as_share(value)})
            for group, value in zip(groups, hashes, strict=True)
        ]

    def _numbers_of(self, groups: pa.ChunkedArray) -> npt.NDArray[np.int32]:
        coded = groups.combine_chunks().dictionary_encode()
        unknown = len(self._numbers)
        numbers = [self._numbers.get(name, unknown) for name in coded.dictionary.to_pylist()]
        return np.array(numbers, np.int32)[np.asarray(coded.indices)]


class _Draws:
    """The table ``draws`` of survivors, in a database that spills to a folder."""

    def __init__(self, columns: Mapping[str, str], scratch: Path, memory_limit: str) -> None:
        import duckdb

        self.database = duckdb.connect(
            ":memory:",
            config={"memory_limit": memory_limit, "temp_directory": str(scratch / "draw-spill")},
        )
        self.database.execute("SET preserve_insertion_order = false")
        types = ", ".join(f"{name} {kind}" for name, kind in columns.items())
        self.database.execute(f"CREATE TABLE draws ({types})")

    def insert(self, **columns: npt.NDArray[Any]) -> None:
        """Append rows; the columns are those of the table, in its order."""
        self.database.register("found", pa.table(columns))
        self.database.execute("INSERT INTO draws SELECT * FROM found")
        self.database.unregister("found")


def _positions(shard: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return numbers that order rows as the source has them."""
    return (np.int64(shard) << _ROW_BITS) + rows


def _before(
    rule: RandomRows | BalancedRows,
    shard: int,
    table: pa.Table,
    last: Any,
    last_position: Any,
) -> Flags:
    """Return which rows of a shard do not come after the last one, of all rows or of each."""
    hashes = hashes_of(rule, table)
    positions = _positions(shard, np.arange(table.num_rows))
    return (hashes < last) | ((hashes == last) & (positions <= last_position))


def groups_of(rule: BalancedRows, table: pa.Table) -> pa.ChunkedArray:
    """Return the group of every row, as text."""
    parts: list[Any] = []
    for name in rule.by:
        column = table.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        parts.append(pc.fill_null(column.cast(pa.string()), "null"))
    if rule.present:
        parts.append(_present(rule, table))
    if len(parts) == 1:
        return parts[0]
    plain = [pc.replace_substring(part, "/", "\\/") for part in parts]
    return pc.binary_join_element_wise(*plain, "/")


def _present(rule: BalancedRows, table: pa.Table) -> pa.ChunkedArray:
    names = [name for name, _ in rule.present]
    code = np.zeros(table.num_rows, np.int64)
    for bit, (_, condition) in enumerate(rule.present):
        true = pc.fill_null(expr.evaluate(condition, table), False)
        code |= np.asarray(true.to_numpy(), np.int64) << bit
    words, where = np.unique(code, return_inverse=True)
    texts = [
        "+".join(n for bit, n in enumerate(names) if word >> bit & 1) or "none"
        for word in words.tolist()
    ]
    return pa.chunked_array([pc.take(pa.array(texts, pa.string()), pa.array(where.reshape(-1)))])


def hashes_of(rule: RandomRows | BalancedRows, table: pa.Table) -> npt.NDArray[np.uint64]:
    """Return what orders the rows of a table."""
    uids = table.column("uid")
    name = "random_rows" if isinstance(rule, RandomRows) else "balanced_rows"
    return stable_hashes64((name, rule.seed), uids.to_pylist())


def as_share(hash64: int) -> float:
    """Return a hash as a number in [0, 1] for people to read."""
    return round(max(hash64, 0) / 2**64, 9)

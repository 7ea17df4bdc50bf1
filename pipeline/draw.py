"""An exact random subset: the rows whose hashes come first, as many as were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.contracts.identity import stable_hashes64
from winnow.filters.rules import RandomRows

MEMORY_LIMIT = "1GB"
_ROW_BITS = 32
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
        import duckdb

        self._rule = rule
        self._database = duckdb.connect(
            ":memory:",
            config={"memory_limit": memory_limit, "temp_directory": str(scratch / "draw-spill")},
        )
        self._database.execute("SET preserve_insertion_order = false")
        self._database.execute("CREATE TABLE draws (hash UBIGINT, position BIGINT)")
        self._last: tuple[int, int] | None = (-1, -1)

    def accumulate(self, shard: int, table: pa.Table, alive: Flags) -> None:
        """Add a shard: ``uid`` of all its rows, and which of them survive."""
        rows = np.flatnonzero(alive)
        hashes = hashes_of(self._rule, table.select(["uid"]).take(pa.array(rows)))
        found = pa.table({"hash": hashes, "position": (np.int64(shard) << _ROW_BITS) + rows})
        self._database.register("found", found)
        self._database.execute("INSERT INTO draws SELECT hash, position FROM found")
        self._database.unregister("found")

    def finish(self) -> None:
        """Find the last row of the subset; to be called once all shards were added."""
        row = self._database.execute("SELECT count(*) FROM draws").fetchone()
        num_rows = int(row[0]) if row else 0
        wanted = self._rule.num_kept(num_rows)
        if wanted >= num_rows:
            self._last = None
        elif wanted > 0:
            query = f"SELECT hash, position FROM draws ORDER BY ALL LIMIT 1 OFFSET {wanted - 1}"  # noqa: S608
            last = self._database.execute(query).fetchone()
            assert last is not None
            self._last = (int(last[0]), int(last[1]))
        self._database.close()

    def kept(self, shard: int, table: pa.Table) -> Flags:
        """Return which rows of a shard come before the cut, survivors or not."""
        if self._last is None:
            return np.ones(table.num_rows, bool)
        last_hash, last_position = self._last
        if last_hash < 0:
            return np.zeros(table.num_rows, bool)
        hashes = hashes_of(self._rule, table)
        positions = (np.int64(shard) << _ROW_BITS) + np.arange(table.num_rows)
        last = np.uint64(last_hash)
        return (hashes < last) | ((hashes == last) & (positions <= last_position))

    def threshold(self) -> str:
        """Return the rule with the cut, for the ledger."""
        if self._last is None:
            return str(self._rule)
        return f"draw <= {as_share(self._last[0])} ({self._rule})"


def hashes_of(rule: RandomRows, table: pa.Table) -> npt.NDArray[np.uint64]:
    """Return what orders the rows of a table."""
    uids = table.column("uid")
    return stable_hashes64(("random_rows", rule.seed), uids.to_pylist())


def as_share(hash64: int) -> float:
    """Return a hash as a number in [0, 1] for people to read."""
    return round(max(hash64, 0) / 2**64, 9)

"""The priority cover: which near-duplicate survives, and which row each other one names.

Rows in order of preference are kept unless they neighbour a row that was kept before. Every
dropped row names the most preferred kept row among its neighbours; chains do not form, because a
dropped row drops nobody. The outcome depends on the rows, not on how they are cut into shards.

Neighbours are undirected: it is enough that one of two rows lists the other. Rows of one *group*
(the rule's column ``groups``) neighbour each other and have the same neighbours; a list names a
group by its least uid, whether or not that row survives. So the cover runs over groups: a group's
most preferred row speaks for all of it. A row without a group is a group by itself.

Rows with one uid are one row: the first in source order stands for all of them, and where it stays
the others are dropped as duplicates of their own uid.
"""

from __future__ import annotations

from array import array
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from winnow.filters.rules import PriorityCover

MEMORY_LIMIT = "1GB"
_ROW_BITS = 32
_EDGE_BATCH = 1 << 17


class PriorityCoverState:
    """Collects the survivors of every shard, then says which of them the cover drops.

    Cost: a DuckDB table of all survivors (uid, position, ``prefer`` columns, list), which spills to
    ``scratch`` beyond ``memory_limit``; in Python 8 bytes per row that has a neighbour.
    """

    def __init__(
        self,
        rule: PriorityCover,
        scratch: Path,
        *,
        memory_limit: str = MEMORY_LIMIT,
    ) -> None:
        self._rule = rule
        self._has_rows = self._solved = False
        self._database = duckdb.connect(
            ":memory:",
            config={"memory_limit": memory_limit, "temp_directory": str(scratch / "cover-spill")},
        )
        self._database.execute("SET preserve_insertion_order = false")

    def accumulate(self, shard: int, table: pa.Table, alive: npt.NDArray[np.bool_]) -> None:
        """Add a shard: ``uid`` and the rule's columns of all its rows, and which of them survive.

        ``shard`` is its number in source order; shards may come in any order, each once.
        """
        rows = np.flatnonzero(alive)
        table = table.take(pa.array(rows))
        columns = {
            "position": pa.array((np.int64(shard) << _ROW_BITS) + rows),
            "uid": table["uid"],
            "node": table["uid"],
            "neighbors": table[self._rule.neighbors],
        }
        if self._rule.groups is not None:
            columns["node"] = pc.coalesce(table[self._rule.groups], table["uid"])
        for index, (name, _) in enumerate(self._rule.prefer):
            columns[f"p{index}"] = _comparable(table[name])
        self._insert("rows", pa.table(columns))
        self._has_rows = True

    def result(self, shard: int) -> tuple[npt.NDArray[np.int64], list[bytes]]:
        """Return the rows of a shard that are dropped, ascending, and the kept uid for each."""
        if not self._solved:
            self._solve()
            self._solved = True
        found = self._database.sql(
            "SELECT position, duplicate_of FROM dropped "
            f"WHERE position >> {_ROW_BITS} = {shard} ORDER BY position"
        ).to_arrow_table()
        rows = np.asarray(found["position"].to_numpy()) & ((1 << _ROW_BITS) - 1)
        return rows.astype(np.int64), found["duplicate_of"].to_pylist()

    def _solve(self) -> None:
        if not self._has_rows:
            self._database.execute("CREATE TABLE dropped (position BIGINT, duplicate_of BLOB)")
            return
        order = [
            f"p{index} {'DESC' if way == 'largest' else 'ASC'} NULLS LAST"
            for index, (_, way) in enumerate(self._rule.prefer)
        ]
        self._database.execute(_RANK.format(order=", ".join([*order, "uid"])))
        self._insert("owners", self._cover())
        self._database.execute(_DROP)

    def _cover(self) -> pa.Table:
        """Return for every dropped group (rank of its best row) the rank of the row that drops it.

        Edges come in order of (better rank, worse rank). When the first edge of a group as the
        better end comes, all edges to still better groups have passed, so whether it is kept is
        settled; and the first kept group that reaches another one is its most preferred one.
        """
        row = self._database.execute("SELECT count(*) FROM ranked").fetchone()
        owner = array("q", [-1]) * (int(row[0]) if row else 0)
        edges = self._database.execute("SELECT better, worse FROM edges ORDER BY better, worse")
        while batch := edges.fetchmany(_EDGE_BATCH):
            for better, worse in batch:
                if owner[better] < 0 and owner[worse] < 0:
                    owner[worse] = better
        owners = np.frombuffer(owner, np.int64) if owner else np.empty(0, np.int64)
        dropped = np.flatnonzero(owners >= 0)
        return pa.table({"best": dropped, "owner": owners[dropped]})

    def _insert(self, name: str, rows: pa.Table) -> None:
        self._database.register("found", rows)
        self._database.execute(f"CREATE TABLE IF NOT EXISTS {name} AS SELECT * FROM found LIMIT 0")
        self._database.execute(f"INSERT INTO {name} SELECT * FROM found")
        self._database.unregister("found")


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column that DuckDB orders as rules do: NaN is null, a dictionary is its values."""
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        wide = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(wide), pa.scalar(None, pa.float64()), wide)
    return column


# A group is a node; only nodes with an edge or a second row are ranked.
_RANK = """
CREATE TABLE repeated AS
    SELECT uid, min(position) AS first FROM rows GROUP BY uid HAVING count(*) > 1;
CREATE VIEW firsts AS
    SELECT * FROM rows WHERE NOT EXISTS (
        SELECT 1 FROM repeated WHERE repeated.uid = rows.uid AND repeated.first < rows.position);
CREATE TABLE links AS
    SELECT DISTINCT node AS a, b FROM (SELECT node, unnest(neighbors) AS b FROM firsts)
    WHERE node <> b;
CREATE TABLE ranked AS
    SELECT position, uid, node, row_number() OVER (ORDER BY {order}) - 1 AS rank FROM firsts
    WHERE node IN (
        SELECT a FROM links UNION SELECT b FROM links
        UNION SELECT node FROM firsts WHERE node <> uid);
CREATE TABLE nodes AS SELECT node, min(rank) AS best FROM ranked GROUP BY node;
CREATE TABLE edges AS
    SELECT DISTINCT least(x.best, y.best) AS better, greatest(x.best, y.best) AS worse
    FROM links JOIN nodes x ON a = x.node JOIN nodes y ON b = y.node;
"""
_DROP = """
CREATE TABLE dropped AS
    SELECT r.position, kept.uid AS duplicate_of
    FROM ranked r JOIN nodes USING (node) LEFT JOIN owners USING (best)
    JOIN ranked kept ON kept.rank = coalesce(owner, best)
    WHERE owner IS NOT NULL OR r.rank <> best;
INSERT INTO dropped
    SELECT rows.position, coalesce(d.duplicate_of, rows.uid)
    FROM rows JOIN repeated ON rows.uid = repeated.uid AND repeated.first < rows.position
    LEFT JOIN dropped d ON d.position = repeated.first;
"""

"""How often each 16-byte key occurs over all shards, and where first, beyond what memory holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from winnow.stages.dedupe._columns import Octets, big_endian_words

MEMORY_LIMIT = "1GB"
_ROW_BITS = 32


class Occurrences:
    """Counts keys shard by shard. Positions are (number of the shard, row), in source order.

    Cost: 24 bytes a row, in a DuckDB table that spills to ``scratch`` beyond ``memory_limit``.
    """

    def __init__(self, scratch: Path, *, memory_limit: str = MEMORY_LIMIT) -> None:
        self._database = duckdb.connect(
            ":memory:",
            config={"memory_limit": memory_limit, "temp_directory": str(scratch / "spill")},
        )
        self._database.execute("SET preserve_insertion_order = false")
        self._database.execute("CREATE TABLE keys (high UBIGINT, low UBIGINT, position BIGINT)")
        self._num_rows: list[int] = []

    def add(self, keys: Octets, valid: npt.NDArray[np.bool_]) -> None:
        """Add the next shard: (rows, 16) bytes, and which rows have a key."""
        rows = np.flatnonzero(valid)
        high, low = big_endian_words(keys[rows]).T
        position = (np.int64(len(self._num_rows)) << _ROW_BITS) + rows
        found = pa.table({"high": high, "low": low, "position": position})
        self._database.register("found", found)
        self._database.execute("INSERT INTO keys SELECT high, low, position FROM found")
        self._database.unregister("found")
        self._num_rows.append(len(valid))

    def num_repeated(self) -> int:
        """Find the keys that occur more than once, and return how many there are."""
        self._database.execute(
            "CREATE TABLE repeated AS SELECT high, low, count(*) AS num, min(position) AS first "
            "FROM keys GROUP BY high, low HAVING count(*) > 1"
        )
        row = self._database.execute("SELECT count(*) FROM repeated").fetchone()
        return int(row[0]) if row else 0

    def results(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]]:
        """Yield per shard, after ``num_repeated``: occurrences of each row's key, and whether an
        equal key came before. A row without a key gets 1 and false."""
        for shard, num_rows in enumerate(self._num_rows):
            found = self._database.execute(
                "SELECT position, num, first FROM keys JOIN repeated USING (high, low) "
                f"WHERE position >> {_ROW_BITS} = {shard}"
            ).fetchnumpy()
            position = np.asarray(found["position"], np.int64)
            rows = position & ((1 << _ROW_BITS) - 1)
            num, later = np.ones(num_rows, np.int64), np.zeros(num_rows, bool)
            num[rows] = found["num"]
            later[rows] = found["first"] < position
            yield num, later

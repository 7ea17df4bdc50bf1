"""Shards, column files and inputs made by hand, for tests that need no run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from winnow.contracts.identity import UID_TYPE, row_uid
from winnow.pipeline.arrow_files import UID, ShardWriter
from winnow.pipeline.shards import Shard, table_digest
from winnow.pipeline.storage import Storage


def write_jsonl(path: Path, texts: Sequence[Any], start: int = 0) -> Path:
    """One row per text; urls differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"url": f"http://h/{i}-{t}", "text": t} for i, t in enumerate(texts, start)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def uids(*names: object) -> pa.Array:
    """One uid per name."""
    return pa.array([row_uid(str(n)) for n in names], UID_TYPE)


def rows_table(uid: pa.Array, columns: dict[str, pa.Array]) -> pa.Table:
    """uid and columns."""
    fields = [UID, *(pa.field(n, c.type) for n, c in columns.items())]
    return pa.table([uid, *columns.values()], pa.schema(fields))


def put_table(storage: Storage, name: str, table: pa.Table) -> None:
    """Commit a table as one file."""
    with storage.create(name) as commit:
        writer = ShardWriter(commit.file, table.schema)
        writer.write(table)
        writer.close()


def put_rows(storage: Storage, table: pa.Table, first_row: int = 0) -> Shard:
    """Commit source rows and return their shard."""
    content = table_digest(table)
    put_table(storage, f"rows/{content}.parquet", table)
    return Shard(
        id=content, content_id=content, num_rows=table.num_rows, file="f", first_row=first_row
    )


def snapshot(folder: Path) -> dict[str, bytes]:
    """Relative name -> bytes of every file below a folder."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


class Killed(BaseException):
    """The process ends here."""


def kill_at(patch: Any, commit: int) -> None:
    """Raise Killed in place of the commit with this number, from 0, on local storage."""
    real, seen = Storage._link, [0]

    def link(self: Storage, temporary: Path, path: str) -> bool:
        if seen[0] == commit:
            raise Killed
        seen[0] += 1
        return real(self, temporary, path)

    patch.setattr(Storage, "_link", link)

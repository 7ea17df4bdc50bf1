"""Exports of small pictures for tests, and an executor that does everything in another order."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from winnow.contracts.errors import ShardError
from winnow.contracts.stage import Resources, WorkerOptions
from winnow.pipeline.executor import Executor, Outcome
from winnow.pipeline.run import RunReport
from winnow.pipeline.units import Unit, WorkerContext


def pictures(
    path: Path, rows: int = 40, repeat: dict[int, int] | None = None
) -> list[dict[str, Any]]:
    """A table with image bytes; row i of ``repeat`` says what row repeat[i] says."""
    said = [(repeat or {}).get(i, i) for i in range(rows)]
    found = [
        {
            "url": f"http://h/{i}",
            "text": None if i % 7 == 3 else f"caption {i}",
            "n": i,
            "image": b"\x89PNG\r\n\x1a\n" + random.Random(place).randbytes(50 + place),
        }
        for place, i in enumerate(said)
    ]
    schema = pa.schema(
        {"url": pa.string(), "text": pa.string(), "n": pa.int32(), "image": pa.large_binary()}
    )
    pq.write_table(pa.Table.from_pylist(found, schema), path)
    return found


def recipe(path: Path, export: str = "rows_per_file: 12", least: int = 5, shard: int = 4) -> str:
    return f"""
name: pictures
rows_per_shard: {shard}
source: {{use: url_table, path: '{path}'}}
stages: {{toy_length: }}
filters:
  enough: {{use: where, expression: "n >= {least}", on_null: drop}}
export:
  train: {{{export}}}
"""


def samples(folder: Path) -> list[tuple[str, str, dict[str, bytes]]]:
    """(file, key, extension -> bytes) of every sample in order."""
    found: list[tuple[str, str, dict[str, bytes]]] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if not found or found[-1][1] != key:
                    found.append((path.name, key, {}))
                data = tar.extractfile(member)
                assert data is not None
                found[-1][2][extension] = data.read()
    return found


def exported(report: RunReport, tmp_path: Path, workspace: str = "ws") -> Path:
    assert report.exit_code == 0, [str(f) for f in report.failures]
    return tmp_path / workspace / report.exports["train"]


class Backwards(Executor):
    """Six units at a time; the last one that was submitted ends first, in a context of its own."""

    def __init__(self, options: WorkerOptions, crumbs: Path | None = None) -> None:
        self.options, self.scratch = options, crumbs or Path()
        self.waiting: list[tuple[Unit, Callable[[int], None]]] = []

    def room(self, resources: Resources) -> int:
        return 6 - len(self.waiting)

    def submit(self, unit: Unit, progress: Callable[[int], None]) -> None:
        self.waiting.append((unit, progress))

    def wait(self, timeout_s: float) -> list[tuple[Unit, Outcome]]:
        if not self.waiting:
            return []
        unit, progress = self.waiting.pop()
        self.scratch.mkdir(parents=True, exist_ok=True)
        context = WorkerContext(self.options, self.scratch, progress=progress)
        try:
            return [(unit, unit.run(context))]
        except ShardError as error:
            return [(unit, error)]

    def close(self) -> None:
        self.waiting.clear()
